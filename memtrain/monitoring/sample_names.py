"""Names of samples in a loop: strings, integers, or tensors whose content names the samples."""

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
    """Makes keys from a loop's names, and logs once if the content names samples."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, keys: Any) -> list[str]:
        """Return the keys of the samples.

        Args:
            keys: B strings or integers, a `(B,)` integer tensor, or a tensor or list of B tensors whose content is
                hashed. Token ids name a caption, so samples with the same caption are then one sample.

        Raises:
            DataError: if they are no names.
        """
        if hasattr(keys, "__array__") and not isinstance(keys, Tensor):
            # These are NumPy values. Strings have no tensor.
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
                "A hash of their content (%s) names the samples, so equal rows are one sample. Give them names "
                "(memtrain.data.keyed) to find them again in the records",
                str(rows.dtype).removeprefix("torch."),
            )
        return content_names(rows)


def checked_name(key: str | int) -> str:
    """Return a name as text.

    Raises:
        DataError: if the name is empty or cannot be written to a table.
    """
    if key == "":
        raise nameless(key)
    try:
        name = str(key)
        name.encode("utf-8")
    except ValueError as error:
        # This is a file name with undecodable bytes, or a whole number with thousands of digits.
        raise DataError(
            f"A sample's name cannot be written to a table: {error}",
            expected="text that UTF-8 can hold, or a whole number of at most 4300 digits",
            remedy="rename the file, or name samples by their index in the dataset",
        ) from None
    return name


def content_names(rows: Tensor) -> list[str]:
    """Return a hash of each row of `(B, ...)`; equal rows have the same name on every machine."""
    # This makes one copy for all rows. Half precision has no NumPy type everywhere, but it has bytes.
    flat = rows.detach().cpu().flatten(1) if rows.dim() > 1 else rows.detach().cpu()[:, None]
    raw = flat.contiguous().view(torch.uint8)
    return [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in raw]


def nameless(found: Any) -> DataError:
    """Return the error for a key that is no name."""
    return DataError(
        f"{'An empty string' if found == '' else f'A {type(found).__name__}'} names no sample",
        expected="B strings or integers, or a tensor with a row for each sample",
        remedy='pass keys=batch["key"] (memtrain.data.keyed gives a dataset keys), or token ids',
    )
