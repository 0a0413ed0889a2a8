"""Latents and text embeddings on disk, computed once by all processes together and used by every later run.

`<folder>/latents-<encoder>/` and `<folder>/text-<encoder>/` hold shards (:mod:`memtrain.data.tensor_shards`). The
name of an entry is a hash of an image's pixels and of its cut, or a hash of a caption's tokens. The name of a folder is
a hash of the encoder's weights and configuration. A changed image, caption, size or encoder thus has another name and
is computed again. Every entry that is found is right, whichever data or run made it. The first process finds out what
is missing, each process computes its share, and all processes read when the last one has finished. A run that was
stopped goes on where it was. Nothing is ever deleted. You may delete the folder of an encoder that you no longer use at
any time.
Cost: with Stable Diffusion at 512 pixels, 64 kB for the latents of an image and 230 kB for the embeddings of a caption.
The start takes a second per gigabyte of encoders. Each start still decodes every image once, as every run does, and so
notices a changed one.
Cannot: cache what training changes. The cache refuses augmentations that it would freeze, and text encoders that are
trained. Embeddings have full precision, even if training runs its encoders in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from memtrain.data.dataset import CaptionedImages
from memtrain.data.framing import Frame
from memtrain.data.kept_latents import View, encoded
from memtrain.data.source import Look
from memtrain.data.tensor_shards import ShardWriter, TensorShards, content_key
from memtrain.data.token_table import TokenTable
from memtrain.errors import ConfigurationError
from memtrain.files.progress import progress_bar

CAPTIONS_AT_ONCE = 16
"""The number of captions that are encoded in one forward."""


def encoded_together(kind: str, most: int) -> int:
    """Return how many images or captions a kind of device encodes in one forward.

    The CPU encodes each alone. There, the other rows of a batch change the last bit of a result. The last bit would
    then depend on the number of processes, on stops and starts, and on the batches of a training that fills a cache.
    """
    return 1 if kind == "cpu" else most


@dataclass(frozen=True)
class Cache:
    """The settings of the cache on disk.

    Args:
        folder: the folder of the cache, which all runs and data may share.
        latents: whether to cache the latents of every image.
        text: whether to cache the embeddings of every caption.
        fill: the time at which the cache is filled: `before` training, or in `training`, at each sample's first visit
            (:mod:`memtrain.data.filling`).
    """

    folder: str
    latents: bool = True
    text: bool = True
    fill: Literal["before", "training"] = "before"

    def __post_init__(self) -> None:
        if self.fill not in ("before", "training"):
            raise ConfigurationError(
                f"cache.fill={self.fill!r}",
                expected="before, or training",
                remedy="set data.init_args.cache.fill to before or training",
            )


@dataclass(frozen=True)
class Processes:
    """The processes that compute together; by default one process alone.

    Attributes:
        rank: the number of this process.
        count: the number of all processes.
        barrier: the function that returns when all processes have called it.
        broadcast: the function that returns the first process's value.
    """

    rank: int = 0
    count: int = 1
    barrier: Callable[[], object] = lambda: None
    broadcast: Callable[[Any], Any] = lambda value: value


class StoredLatents:
    """Latents of a dataset in shards.

    Args:
        shards: the shards, already looked through.
        keys: the keys of the entries, by row and variant.
    """

    def __init__(self, shards: TensorShards, keys: dict[View, str]) -> None:
        self.shards, self.keys = shards, keys

    def __call__(self, row: int, variant: int) -> dict[str, Tensor]:
        """Return `latents`, `(C, h, w)`."""
        return self.shards.read(self.keys[row, variant])


class StoredText:
    """Text embeddings in shards.

    Args:
        shards: the shards, already looked through.
        keys: the keys of the entries, in the order of a dataset's tokens.
    """

    def __init__(self, shards: TensorShards, keys: list[str]) -> None:
        self.shards, self.keys = shards, keys

    def __call__(self, place: int) -> dict[str, Tensor]:
        """Return the fields of a caption."""
        return self.shards.read(self.keys[place])


def cache_latents(
    datasets: Sequence[CaptionedImages],
    folder: Path,
    encode: Callable[[Tensor], Tensor],
    *,
    at_once: int | None = None,
    processes: Processes | None = None,
) -> None:
    """Let datasets read their latents from a folder, after computing the missing ones.

    Args:
        datasets: the datasets, with fixed shapes and variants.
        folder: the folder of the encoder's latents.
        encode: the function from `(B, 3, H, W)` pixel values to `(B, C, h, w)` scaled latents.
        at_once: the number of images that are encoded together; by default their size decides.
        processes: the processes that share the work.
    """
    shards = TensorShards(folder)
    keys = [{view: _view_key(dataset, view) for view in dataset.views()} for dataset in datasets]
    places = {key: (dataset, view) for dataset, own in zip(datasets, keys, strict=True) for view, key in own.items()}

    def compute(missing: list[str], writer: ShardWriter) -> None:
        for dataset in datasets:
            names = {places[key][1]: key for key in missing if places[key][0] is dataset}
            for views, latents in encoded(dataset, list(names), encode, batch_size=at_once):
                for view, one in zip(views, latents, strict=True):
                    writer.add(names[view], {"latents": one})

    _fill(shards, list(places), compute, processes or Processes())
    for dataset, own in zip(datasets, keys, strict=True):
        dataset.use(latents=StoredLatents(shards, own))


def _view_key(dataset: CaptionedImages, view: View) -> str:
    row, variant = view
    return view_key(dataset.source.look(dataset.indices[row]), dataset.view(row, variant))


def view_key(look: Look, frame: Frame) -> str:
    """Return the name of an image's latents, from its content and its cut."""
    return content_key(look.digest, frame.shape, frame.across, frame.along, frame.flipped)


def cache_text(
    datasets: Sequence[CaptionedImages],
    folder: Path,
    encode: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    *,
    empty: dict[str, Tensor],
    at_once: int = CAPTIONS_AT_ONCE,
    processes: Processes | None = None,
) -> dict[str, Tensor]:
    """Let datasets read their text embeddings from a folder, after computing the missing ones.

    Args:
        datasets: the datasets, with tokens.
        folder: the folder of the encoders' embeddings.
        encode: the function from fields of tokens to fields of embeddings, each `(B, ...)`.
        empty: the tokens of the empty caption, `(1, ...)`.
        at_once: the number of captions that are encoded together.
        processes: the processes that share the work.

    Returns:
        The embeddings of the empty caption, `(1, ...)`.
    """
    shards = TensorShards(folder)
    types = {name: values.dtype for name, values in empty.items()}
    tokens = [*(dataset.tokens for dataset in datasets if dataset.tokens), TokenTable(empty, types)]
    keys = [[caption_key(fields.row(row)) for row in range(_count(fields))] for fields in tokens]
    places = {key: (fields, row) for fields, own in zip(tokens, keys, strict=True) for row, key in enumerate(own)}

    def compute(missing: list[str], writer: ShardWriter) -> None:
        starts = range(0, len(missing), at_once)
        for start in progress_bar(starts, desc="encoding captions", unit="batch", leave=False):
            chunk = missing[start : start + at_once]
            rows = [fields.row(row) for fields, row in (places[key] for key in chunk)]
            with torch.no_grad():
                found = encode({name: torch.stack([row[name] for row in rows]) for name in rows[0]})
            for number, key in enumerate(chunk):
                writer.add(key, {name: values[number] for name, values in found.items()})

    _fill(shards, list(places), compute, processes or Processes())
    for dataset, own in zip((one for one in datasets if one.tokens), keys, strict=False):
        dataset.use(text=StoredText(shards, own))
    return {name: values[None] for name, values in shards.read(keys[-1][0]).items()}


def _count(fields: TokenTable) -> int:
    return len(next(iter(fields.values())))


def caption_key(fields: Mapping[str, Tensor]) -> str:
    """Return the name of a caption's embeddings, from its tokens."""
    return content_key(*(part for name in sorted(fields) for part in (name, fields[name])))


def _fill(
    shards: TensorShards,
    keys: list[str],
    compute: Callable[[list[str], ShardWriter], None],
    processes: Processes,
) -> None:
    """Compute the missing entries of `keys`, each process a part, and look again when all have finished."""
    if processes.rank == 0:
        shards.look(clean=True)
    missing = processes.broadcast(shards.missing(keys) if processes.rank == 0 else None)
    if missing:
        writer = ShardWriter(shards.folder)
        compute(missing[processes.rank :: processes.count], writer)
        writer.flush()
    processes.barrier()
    shards.look()
    if lost := shards.missing(keys):
        raise ConfigurationError(
            f"{len(lost)} of {len(keys)} entries are not in {shards.folder} after they were written",
            expected="a folder that all processes see, and that no other program empties",
            remedy="set data.init_args.cache.folder to a folder that all nodes share",
        )
    shards.forget_others(keys)


def refuse_frozen(dataset: CaptionedImages, *, latents: bool = False, text: bool = False) -> None:
    """Refuse to cache random values.

    Args:
        dataset: the dataset to cache.
        latents: whether its latents are cached.
        text: whether its text embeddings are cached.

    Raises:
        ConfigurationError: if a cache would freeze random values.
    """
    augment = dataset.framing.augment
    if latents and augment.random and not augment.variants:
        raise ConfigurationError(
            "Cached latents would freeze the random crops and flips of the first visit",
            expected="augment.variants: the number of cached views of each image (2 for flips alone, about 4 with "
            "crops)",
            remedy="set data.init_args.augment.variants, or do not cache latents",
        )
    if text and dataset.captions.shuffle_tags:
        raise ConfigurationError(
            "Cached text embeddings would freeze the order of shuffled tags",
            expected="captions that do not change",
            remedy="set data.init_args.cache.text to false, or captions.shuffle_tags to false",
        )
