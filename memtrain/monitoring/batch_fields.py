"""The fields that the engine reads from a batch: names of samples, lengths and masks of captions, and images.

A batch may be a dict or any other mapping (transformers' `BatchEncoding`), a tuple, a list or a tensor. The first of
these names its samples:

1. the field that `key_field` names, if it is set (the batch must hold it);
2. the field `key`;
3. a hash of each sample's image: `latents`, `pixel_values`, `image` or `images`, or else the first tensor of four
   dimensions or of three. A message says so once. The hash names a sample only if every visit shows the same image.
   Random crops and flips change the name each time, so no sample would come up twice or be flagged. A dataset that
   shows one index differently is refused therefore, and so is a run whose names do not come again.

Names are strings, or whole numbers in a list or tensor `(B,)`, or rows of a tensor `(B, n)` of whole numbers, such as
token ids, which are hashed.

Cost of the third: the images of every batch are copied to the host and hashed.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from memtrain.errors import DataError
from memtrain.monitoring.sample_names import checked_name, content_names

log = logging.getLogger(__name__)

DEFAULT_FIELD = "key"
IMAGES = ("latents", "pixel_values", "image", "images")
"""Fields with the image of a sample, in the order of the search."""

AGAIN = 100
"""Number of visits of known samples before the names are judged."""

SEEN = 0.1
"""Least share of these visits with known names. Even with replacement, most samples come up in the first round."""

ALL_DIFFERENT = 2000
"""Number of visits before a message about names that never came up twice, if the number of samples is unknown."""

REMEDY = "give every sample a stable name in the dataset (its file name or index) and set key_field to that field"


class BatchNames:
    """Names the samples of batches; :class:`memtrain.monitoring.sample_names.SampleNames` names samples of a loop.

    Args:
        field: the field of the batch with the names; None for `key`, or for the content if there is no such field.
    """

    def __init__(self, field: str | None = None) -> None:
        self.field = field
        self.by_content = False
        self._known, self._visits, self._warned = 0, 0, False

    def __call__(self, batch: Any) -> list[str]:
        """The samples' names.

        Raises:
            DataError: if there are no names, and no image to identify samples.
        """
        if self.field is not None or (isinstance(batch, Mapping) and batch.get(DEFAULT_FIELD) is not None):
            return sample_keys(batch, self.field or DEFAULT_FIELD)
        where, images = _images(batch)
        if not self.by_content:
            self.by_content = True
            log.warning(
                "The batches hold no names of samples under %r, so a hash of its %s names each sample. This is right "
                "only if a sample looks the same in every visit, without random crops or flips. Otherwise %s",
                DEFAULT_FIELD,
                where,
                REMEDY,
            )
        return [f"image-{name}" for name in content_names(images)]

    def of_training(self, batch: Any, *, dataset: Any, known: Container[str], round_over: bool | None) -> list[str]:
        """Return the names of a training batch's samples, and check that names come again.

        The arguments are those of :meth:`require_same` and :meth:`watch`.

        Raises:
            DataError: if there are no names, or names do not come again.
        """
        first = not self.by_content
        keys = self(batch)
        if first and self.by_content:
            self.require_same(dataset)
        self.watch(keys, known, round_over=round_over)
        return keys

    def require_same(self, dataset: Any) -> None:
        """Refuse data that show one sample in two ways, if its image names it.

        Args:
            dataset: the dataset, which is asked twice for its first sample. It may have a `collate`. None is not
                checked.

        Raises:
            DataError: if the two samples differ.
        """
        if not self.by_content or not hasattr(dataset, "__getitem__") or not len(dataset):
            return
        collate = getattr(dataset, "collate", default_collate)
        # The random state of the host is restored after the check.
        state = random.getstate()
        with torch.random.fork_rng():
            first, second = (self(collate([dataset[0]])) for _ in range(2))
        random.setstate(state)
        if first != second:
            raise _unstable("the dataset shows the same sample differently each time")

    def watch(self, keys: Sequence[str], known: Container[str], *, round_over: bool | None) -> None:
        """Refuse names that never come again; call it with each batch.

        Args:
            keys: the keys of the samples in the batch.
            known: the keys of all samples so far on all processes; it may lag behind.
            round_over: whether every sample has been seen once; None if unknown.

        Raises:
            DataError: if hardly any name comes again although all data have been seen.
        """
        if not self.by_content or round_over is False or self._warned:
            return
        self._visits += len(keys)
        self._known += sum(key in known for key in keys)
        if round_over and self._visits >= AGAIN:
            if self._known < SEEN * self._visits:
                raise _unstable(
                    f"{self._visits - self._known} of {self._visits} visits after the first round of all data had new "
                    "names"
                )
            self._known, self._visits = 0, 0
        elif round_over is None and self._visits >= ALL_DIFFERENT and not self._known:
            self._warned = True
            log.warning(
                "No sample came up twice in %d visits. If the data have fewer samples, images are changed at random, "
                "and no sample can be flagged. Remedy: %s",
                self._visits,
                REMEDY,
            )


def sample_keys(batch: Any, field: str) -> list[str]:
    """Return the names in the field `field` of a batch.

    Raises:
        DataError: if the batch holds no names.
    """
    keys = batch.get(field) if isinstance(batch, Mapping) else None
    names = None if keys is None else _names(keys)
    if names is None:
        found = _shown(batch) if keys is None else f"{field!r} is {_shown(keys)}"
        raise DataError(
            f"The batch holds no sample keys: found {found}",
            expected=f"a dict with B strings or whole numbers under {field!r}",
            remedy="give every sample a stable name in the dataset, or set key_field",
        )
    return names


def _names(keys: Any) -> list[str] | None:
    """Return B strings; None if the keys are no names."""
    if isinstance(keys, Tensor):
        if keys.dim() == 0 or keys.is_floating_point() or keys.is_complex() or keys.dtype == torch.bool:
            return None
        rows = keys.detach().cpu()
        return [str(key) for key in rows.tolist()] if keys.dim() == 1 else content_names(rows)
    if isinstance(keys, str) or not hasattr(keys, "__len__") or not hasattr(keys, "__iter__"):
        return None
    listed = list(keys)
    if all(isinstance(key, Tensor) and key.dim() == 0 for key in listed) and listed:
        return _names(torch.stack(listed))
    if not all(isinstance(key, str | Integral) and not isinstance(key, bool) for key in listed):
        return None
    return [checked_name(key if isinstance(key, str) else int(key)) for key in listed]


def _images(batch: Any) -> tuple[str, Tensor]:
    """Find the images of the samples, and their place in the batch."""
    found = [
        (where, part) for where, part in _tensors(batch, "") if part.is_floating_point() or part.dtype == torch.uint8
    ]
    named = [one for name in IMAGES for one in found if one[0] == f"[{name!r}]" and one[1].dim() >= 3]
    for one in [*named, *(one for one in found if one[1].dim() >= 4), *(one for one in found if one[1].dim() == 3)]:
        return f"field {one[0]}" if one[0] else "values", one[1]
    raise DataError(
        f"The batch holds neither sample keys nor images that could name samples: found {_shown(batch)}",
        expected=f"a dict with B strings or whole numbers under {DEFAULT_FIELD!r}, or a tensor of images",
        remedy=REMEDY,
    )


def _tensors(value: Any, where: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield where, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _tensors(part, f"{where}[{name!r}]")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _tensors(part, f"{where}[{index}]")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(sorted(map(str, value)))
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(type(part).__name__ for part in value[:4])}"
    return type(value).__name__


def _unstable(found: str) -> DataError:
    return DataError(
        f"A hash of their images names the samples, but {found}",
        expected="images without random changes, or names of samples in the batches",
        remedy=REMEDY,
    )


def field_of(batch: Any, name: str) -> Any:
    """Return the field `name` of a batch; None if it has no such field or is no mapping."""
    return batch.get(name) if isinstance(batch, Mapping) else None


def described_length(batch: Any, count: int) -> Tensor | None:
    """Return `prompt_length` `(B,)` of a batch of `count` samples; None if the field has another form."""
    length = field_of(batch, "prompt_length")
    return length if isinstance(length, Tensor) and length.shape == (count,) else None


def described_mask(batch: Any, count: int) -> Tensor | None:
    """Return `prompt_mask` `(B, T)` of a batch of `count` samples; None if the field has another form."""
    mask = field_of(batch, "prompt_mask")
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 and len(mask) == count else None


def pictures_of(batch: Any, count: int) -> Tensor | None:
    """Return the images or latents `(B, ...)` of a batch of `count` samples; None without images."""
    try:
        _, images = _images(batch)
    except DataError:
        return None
    return images if len(images) == count else None


def captions_of(batch: Any, count: int) -> list[str] | None:
    """Return the captions of a batch of `count` samples; None without texts under `caption`."""
    captions = field_of(batch, "caption")
    listed = isinstance(captions, list | tuple) and len(captions) == count
    return list(captions) if listed and all(isinstance(caption, str) for caption in captions) else None


def token_rows(batch: Any, count: int) -> tuple[Tensor, Tensor] | None:
    """Return token ids `(B, T)` of `count` samples, and whether captions are empty, `(B,)`; None without ids.

    A row is empty if `prompt_mask` shows no words in it, or if `prompt_length` counts only CLIP's begin and end.
    Without these fields, it is empty if all tokens after the first are equal. An empty text has this form, except for
    CLIP tokenizers that pad with another token than the end.
    """
    ids = field_of(batch, "input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) != count or ids.is_floating_point():
        return None
    length, mask = described_length(batch, count), described_mask(batch, count)
    if mask is not None:
        empty = ~mask.bool().any(dim=1)
    else:
        empty = (ids[:, 1:] == ids[:, -1:]).all(dim=1) if length is None else length <= 2
    return ids, empty.to(ids.device)


def caption_dropped(keys: Sequence[str], batch: Any, *, without: Collection[str]) -> list[bool]:
    """Return B values, true if the empty caption replaces the sample's own; empty if no caption is dropped.

    Args:
        keys: the keys of the samples in the batch.
        batch: the batch, which may have a field `caption`.
        without: the keys of samples whose own caption is empty.
    """
    captions = field_of(batch, "caption")
    # A host may keep another value under this name.
    if not isinstance(captions, list | tuple) or len(captions) != len(keys):
        return []
    dropped = [
        isinstance(caption, str) and caption == "" and key not in without
        for key, caption in zip(keys, captions, strict=True)
    ]
    return dropped if any(dropped) else []
