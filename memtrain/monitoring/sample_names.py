"""What a loop calls its samples: strings, integers, or tensors whose content names them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import DataError

log = logging.getLogger(__name__)


class SampleNames:
    """Makes keys of what a loop has; says once when content is what names samples."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, keys: Any) -> list[str]:
        """Keys of the samples.

        Args:
            keys: B strings or integers, a `(B,)` integer tensor, or a tensor or list of B tensors whose content is
                hashed. Token ids name a caption: samples that share one are then one sample.

        Raises:
            DataError: if they name nothing.
        """
        if hasattr(keys, "__array__") and not isinstance(keys, Tensor):
            # NumPy; strings have no tensor.
            keys = keys.tolist() if getattr(keys, "ndim", 1) <= 1 else torch.as_tensor(keys)
        if isinstance(keys, Tensor):
            if keys.dtype == torch.bool:
                raise nameless(True)
            if keys.dim() == 0:
                keys = keys[None]
            whole = keys.dim() == 1 and not (keys.is_floating_point() or keys.is_complex())
            return [str(key) for key in keys.tolist()] if whole else self._hashed(keys)
        if not isinstance(keys, Iterable) or isinstance(keys, str | bytes | dict):
            raise nameless(keys)
        return [self._name(key) for key in keys]

    def _name(self, key: Any) -> str:
        if isinstance(key, str | int) and not isinstance(key, bool):
            return checked_name(key)
        if hasattr(key, "__array__") or isinstance(key, Tensor):
            tensor = torch.as_tensor(key)
            if tensor.dtype == torch.bool:
                raise nameless(True)
            if tensor.dim() == 0 and not tensor.is_floating_point():
                return str(tensor.item())
            return self._hashed(tensor[None])[0]
        raise nameless(key)

    def _hashed(self, rows: Tensor) -> list[str]:
        if not self._said:
            self._said = True
            log.warning(
                "Samples are named by a hash of their content (%s): equal rows are one sample. Give them names "
                "(memtrain.data.keyed) to find them again in the records",
                str(rows.dtype).removeprefix("torch."),
            )
        return content_names(rows)


def checked_name(key: str | int) -> str:
    """A name as text.

    Raises:
        DataError: if it is empty, or cannot be written into a table.
    """
    if key == "":
        raise nameless(key)
    try:
        name = str(key)
        name.encode("utf-8")
    except ValueError as error:
        # A file name of undecodable bytes, or a whole number of thousands of digits.
        raise DataError(
            f"A sample's name cannot be written down: {error}",
            expected="text that UTF-8 can hold, or a whole number of at most 4300 digits",
            remedy="rename the file, or name samples by their index in the dataset",
        ) from None
    return name


def content_names(rows: Tensor) -> list[str]:
    """A hash of each row of `(B, ...)`: equal rows have one name, on every machine."""
    # One copy for all rows; half precision has no NumPy type everywhere, but it has bytes.
    flat = rows.detach().cpu().flatten(1) if rows.dim() > 1 else rows.detach().cpu()[:, None]
    raw = flat.contiguous().view(torch.uint8)
    return [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in raw]


def nameless(found: Any) -> DataError:
    """The error of a key that is no name."""
    return DataError(
        f"{'An empty string' if found == '' else f'A {type(found).__name__}'} names no sample",
        expected="B strings or integers, or a tensor with a row for each sample",
        remedy='pass keys=batch["key"]; memtrain.data.keyed gives a dataset keys, and token ids will do in a pinch',
    )
