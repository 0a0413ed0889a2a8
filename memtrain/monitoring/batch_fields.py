"""What the engine reads from a batch: the samples' names, and what is known of their captions.

A batch may be a dict or any other mapping (transformers' `BatchEncoding`), a tuple, a list or a tensor. Its samples are
named by the first of these that there is:

1. `key_field`, where it is set: the batch has to hold it;
2. the field `key`;
3. the content of each sample's image, hashed: `latents`, `pixel_values`, `image` or `images`, else the first tensor of
   four dimensions, else of three. That is said once. It names a sample only if every visit shows the same image: random
   crops and flips give it another name each time, nothing would come up twice, and nothing be flagged. So a dataset
   that shows one index differently is refused, and so is a run in which names do not come again.

Names are strings, or whole numbers in a list or tensor `(B,)`, or rows of a tensor `(B, n)` of whole numbers, such as
token ids, which are hashed.

Cost of 3: the images are copied to the host and hashed, with every batch.
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
"""Fields that hold what a sample looks like, in the order in which they are looked for."""

AGAIN = 100
"""Visits of samples that should have been seen before, by which names are judged."""

SEEN = 0.1
"""Share of these that have to be known; even drawn with replacement, most of the data come up in its first round."""

ALL_DIFFERENT = 2000
"""Visits after which names that never came up twice are spoken of, where nobody knows how many samples there are."""

REMEDY = "give every sample a stable name in the dataset (its file name or index) and set key_field to that field"


class BatchNames:
    """Names the samples of batches; :class:`memtrain.monitoring.sample_names.SampleNames` those of a loop without them.

    Args:
        field: of the batch that holds the names; None for `key`, or the content where there is no such field.
    """

    def __init__(self, field: str | None = None) -> None:
        self.field = field
        self.by_content = False
        self._known, self._visits, self._warned = 0, 0, False

    def __call__(self, batch: Any) -> list[str]:
        """The samples' names.

        Raises:
            DataError: if there are none, and no image to tell samples by.
        """
        if self.field is not None or (isinstance(batch, Mapping) and batch.get(DEFAULT_FIELD) is not None):
            return sample_keys(batch, self.field or DEFAULT_FIELD)
        where, images = _images(batch)
        if not self.by_content:
            self.by_content = True
            log.warning(
                "The batches hold no names of samples under %r, so each is named by a hash of its %s. That is right "
                "only if a sample looks the same in every visit, without random crops or flips. Otherwise %s",
                DEFAULT_FIELD,
                where,
                REMEDY,
            )
        return [f"image-{name}" for name in content_names(images)]

    def of_training(self, batch: Any, *, dataset: Any, known: Container[str], round_over: bool | None) -> list[str]:
        """The names of a training batch's samples, as long as these come again; arguments as of the two checks.

        Raises:
            DataError: if there are none, or none that come again.
        """
        first = not self.by_content
        keys = self(batch)
        if first and self.by_content:
            self.require_same(dataset)
        self.watch(keys, known, round_over=round_over)
        return keys

    def require_same(self, dataset: Any) -> None:
        """Refuse data that show one sample in two ways, where its image names it.

        Args:
            dataset: asked twice for its first sample; perhaps with a `collate` of its own. Nothing is asked of None.

        Raises:
            DataError: if it is not the same.
        """
        if not self.by_content or not hasattr(dataset, "__getitem__") or not len(dataset):
            return
        collate = getattr(dataset, "collate", default_collate)
        # The host's own random numbers go on as if nobody had asked.
        state = random.getstate()
        with torch.random.fork_rng():
            first, second = (self(collate([dataset[0]])) for _ in range(2))
        random.setstate(state)
        if first != second:
            raise _unstable("the dataset shows the same sample differently each time")

    def watch(self, keys: Sequence[str], known: Container[str], *, round_over: bool | None) -> None:
        """Refuse names that do not come up again; call with each batch.

        Args:
            keys: of its samples.
            known: of every sample so far, of all processes; it may lag behind.
            round_over: whether every sample has been seen once; None if nobody knows.

        Raises:
            DataError: if hardly any name comes again although all of the data has been seen.
        """
        if not self.by_content or round_over is False or self._warned:
            return
        self._visits += len(keys)
        self._known += sum(key in known for key in keys)
        if round_over and self._visits >= AGAIN:
            if self._known < SEEN * self._visits:
                raise _unstable(
                    f"all data have been seen, and yet {self._visits - self._known} of {self._visits} more visits were "
                    "of samples with new names"
                )
            self._known, self._visits = 0, 0
        elif round_over is None and self._visits >= ALL_DIFFERENT and not self._known:
            self._warned = True
            log.warning(
                "No sample came up twice in %d visits. If the data are not that many, images are changed at random, "
                "and nothing can be flagged: %s",
                self._visits,
                REMEDY,
            )


def sample_keys(batch: Any, field: str) -> list[str]:
    """The names that a batch holds under `field`.

    Raises:
        DataError: if it holds none.
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
    """B strings; None if these are no names."""
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
    """What tells samples apart by their looks, and where it stands in the batch."""
    found = [
        (where, part) for where, part in _tensors(batch, "") if part.is_floating_point() or part.dtype == torch.uint8
    ]
    named = [one for name in IMAGES for one in found if one[0] == f"[{name!r}]" and one[1].dim() >= 3]
    for one in [*named, *(one for one in found if one[1].dim() >= 4), *(one for one in found if one[1].dim() == 3)]:
        return f"field {one[0]}" if one[0] else "values", one[1]
    raise DataError(
        f"The batch holds no sample keys, and no image to tell samples by: found {_shown(batch)}",
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
        f"Samples are named by a hash of their images, but {found}",
        expected="images without random changes, or names of samples in the batches",
        remedy=REMEDY,
    )


def field_of(batch: Any, name: str) -> Any:
    """What a batch holds under `name`, None if it holds no such field or is no mapping."""
    return batch.get(name) if isinstance(batch, Mapping) else None


def described_length(batch: Any, count: int) -> Tensor | None:
    """`prompt_length` `(B,)` of a batch of `count` samples; None if it is something else."""
    length = field_of(batch, "prompt_length")
    return length if isinstance(length, Tensor) and length.shape == (count,) else None


def described_mask(batch: Any, count: int) -> Tensor | None:
    """`prompt_mask` `(B, T)` of a batch of `count` samples; None if it is something else."""
    mask = field_of(batch, "prompt_mask")
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 and len(mask) == count else None


def pictures_of(batch: Any, count: int) -> Tensor | None:
    """The images or latents `(B, ...)` of a batch of `count` samples; None if it holds none."""
    try:
        _, images = _images(batch)
    except DataError:
        return None
    return images if len(images) == count else None


def captions_of(batch: Any, count: int) -> list[str] | None:
    """The captions of a batch of `count` samples; None if it holds no texts under `caption`."""
    captions = field_of(batch, "caption")
    listed = isinstance(captions, list | tuple) and len(captions) == count
    return list(captions) if listed and all(isinstance(caption, str) for caption in captions) else None


def token_rows(batch: Any, count: int) -> tuple[Tensor, Tensor] | None:
    """Token ids `(B, T)` of a batch of `count` samples, and `(B,)` which captions are empty; None if it holds none.

    A row is empty if `prompt_mask` shows no words in it, or `prompt_length` counts none beside CLIP's begin and end.
    With neither, it is if it is the same from its second token on: so is an empty text padded, but for CLIP's
    tokenizers that pad with another token than the end's.
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
    """True where the batch has the empty caption in place of the sample's own, B; empty if it has none such.

    Args:
        keys: of its samples.
        batch: perhaps with `caption`.
        without: keys of samples whose own caption is empty.
    """
    captions = field_of(batch, "caption")
    # A host may keep something else under this name.
    if not isinstance(captions, list | tuple) or len(captions) != len(keys):
        return []
    dropped = [
        isinstance(caption, str) and caption == "" and key not in without
        for key, caption in zip(keys, captions, strict=True)
    ]
    return dropped if any(dropped) else []
