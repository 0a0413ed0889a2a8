"""Training images that are too many to be compared with one by one: a part of them stands for all.

Up to `most` training images (20,000) an evaluation compares with all of them, and nothing here is used. Of more, it
compares with

- the files of the pictures that are asked for, at most :data:`OWN_FILES` of each prompt;
- the nearest of every generation, of every own image and of :data:`LOOKED_AT` random training images, as the index of
  descriptors proposes them (:mod:`memtrain.evaluation.measures.training_index`), at most :data:`CANDIDATES` each, fewer
  where that were more than `most` altogether;
- a random choice of :data:`RANDOM`, the same in every evaluation, which says how far pictures are from each other.

So what asks for the nearest training image has it among its candidates as often as the index proposes it, and what asks
for means over many (the ratio of pixel distances, whose denominator is the mean to the 50 nearest) has that over the
part. Such a mean is larger than over all images, and the ratio smaller; generations for held-out prompts, which set the
threshold, are measured in the same way, so the stated false-positive rate holds. Results name the part.
Only these images are read, when they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.calibration import LOOKED_AT
from memtrain.evaluation.measures.training_index import TrainingIndex
from memtrain.evaluation.sampling.stored_images import stored_images
from memtrain.families.looking import default_workers

ALL_COMPARED = 20_000
"""Training images up to which all are compared."""
CANDIDATES, RANDOM, OWN_FILES = 16, 4096, 32
IN_MEMORY = 1 << 30
"""Bytes of images that are kept in memory; more go to a file."""


@dataclass(frozen=True)
class Bounds:
    """How training images are compared with.

    Attributes:
        most: up to so many, all of them.
        index: folder for the index of more; None for a place of its own.
        part: index and count of the processes that make the index together.
        prompts_only: read no training images, and make no more than the own part of the index: for a process that only
            samples.
    """

    most: int = ALL_COMPARED
    index: Path | None = None
    part: tuple[int, int] = (0, 1)
    prompts_only: bool = False


@dataclass(frozen=True, kw_only=True)
class ComparedPart:
    """The part of N training images that stands for all.

    Attributes:
        keys: of all N.
        rows: `(m,)` int64, the numbers of the images in the part, ascending.
        images: `(m, 3, H, W)` uint8.
        random: numbers of the random choice, ascending.
        looked_at: numbers of those of it whose nearest are in the part as well.
        candidates: of each generation; 0 before there are any.
        index: proposes candidates.
        read: an image by its number.
        identity: names the images for good.
        most: images that the part may hold.
    """

    keys: Sequence[str]
    rows: Tensor
    images: Tensor
    random: Tensor
    looked_at: Tensor
    candidates: int
    index: TrainingIndex
    read: Callable[[int], Tensor]
    identity: str
    most: int

    @property
    def random_places(self) -> Tensor:
        """Where the random choice is in the part."""
        return torch.searchsorted(self.rows, self.random)

    @property
    def looked_at_places(self) -> Tensor:
        """Where the images are that are compared with their nearest."""
        return torch.searchsorted(self.rows, self.looked_at)

    @property
    def name(self) -> str:
        """Of the images in the part."""
        return sha256(repr((self.identity, self.rows.tolist())).encode()).hexdigest()

    @property
    def part_keys(self) -> list[str]:
        """Of the images in the part."""
        return [self.keys[row] for row in self.rows.tolist()]

    def said(self) -> dict[str, Any]:
        """As results hold it."""
        return {
            "images": len(self.keys),
            "compared": len(self.rows),
            "random": len(self.random),
            "candidates": self.candidates,
            "search": self.index.search,
            "descriptor": self.index.described_by,
        }

    def line(self) -> str:
        """For the screen and for who reads the results."""
        return (
            f"Of {len(self.keys):,} training images {len(self.rows):,} were compared: {self.candidates} nearest of "
            f"each generation by {self.index.described_by} ({self.index.search} search), the asked pictures' own "
            f"files, and {len(self.random):,} at random, which mean distances are over"
        )

    def with_candidates(self, generated: Tensor, store: Path | None) -> ComparedPart:
        """The part with the nearest of generations.

        Args:
            generated: `(P, K, 3, H, W)` uint8.
            store: folder for images that are too many for memory.
        """
        nearest = self.index.nearest(generated.flatten(0, 1), CANDIDATES)
        rows, candidates = _fitting(self.rows, nearest, self.most)
        return replace(self, rows=rows, images=self._images(rows, store), candidates=candidates)

    def _images(self, rows: Tensor, store: Path | None) -> Tensor:
        known = dict(zip(self.rows.tolist(), range(len(self.rows)), strict=True))

        def image(number: int) -> Tensor:
            return self.images[known[number]] if number in known else self.read(number)

        return read_images(image, rows.tolist(), store, identity=self.identity)


def compared_part(
    keys: Sequence[str],
    index: TrainingIndex,
    read: Callable[[int], Tensor],
    *,
    own: Sequence[Sequence[int]],
    own_images: Tensor,
    identity: str,
    most: int,
    store: Path | None,
) -> ComparedPart:
    """The part that is known before anything is sampled.

    Args:
        keys: of all N images.
        index: complete.
        read: an image by its number.
        own: per prompt the numbers of its own images.
        own_images: `(P, 3, H, W)` uint8, held-out ones as well.
        identity: names the images for good.
        most: images that the part may hold.
        store: folder for images that are too many for memory.
    """
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(keys), generator=draw)
    random = order[: min(RANDOM, max(1, most // 4))]
    looked_at = random[:LOOKED_AT]
    files = torch.tensor(sorted({row for rows in own for row in rows[:OWN_FILES]}), dtype=torch.int64)
    base = torch.cat([files, random]).unique()
    around = torch.cat([own_images, read_images(read, looked_at.tolist(), None, identity=identity)])
    # One more, because a training image is its own nearest. Half of the room is left to the generations.
    rows, _ = _fitting(base, index.nearest(around, CANDIDATES + 1), max(len(base), most // 2))
    images = read_images(read, rows.tolist(), store, identity=identity)
    return ComparedPart(
        keys=keys,
        rows=rows,
        images=images,
        random=random.sort().values,
        looked_at=looked_at.sort().values,
        candidates=0,
        index=index,
        read=read,
        identity=identity,
        most=most,
    )


def read_images(read: Callable[[int], Tensor], numbers: Sequence[int], store: Path | None, *, identity: str) -> Tensor:
    """Images `(n, 3, H, W)` uint8, decoded by several threads: in memory, or in a file if they are too many for it.

    Args:
        read: an image by its number.
        numbers: of the images.
        store: folder, in which a file of these images is kept; None for memory, whatever their number.
        identity: names all images for good.
    """
    first = read(numbers[0])
    if store is None or len(numbers) * first.numel() <= IN_MEMORY:
        with ThreadPoolExecutor(default_workers()) as pool:
            return torch.stack(list(pool.map(read, numbers)))
    name = sha256(repr((identity, list(numbers))).encode()).hexdigest()
    return stored_images(
        store / name[:16],
        len(numbers),
        (int(first.shape[-2]), int(first.shape[-1])),
        lambda place: read(numbers[place]),
        identity={"images": name},
        workers=default_workers(),
    )


def _fitting(base: Tensor, nearest: Tensor, most: int) -> tuple[Tensor, int]:
    """Numbers of a part with as many nearest of each image as fit in, and how many of each that are."""
    rows, found = base, 0
    for count in range(1, nearest.shape[1] + 1):
        wider = torch.cat([base, nearest[:, :count].flatten()]).unique()
        if len(wider) > max(most, len(base)) and count > 1:
            break
        rows, found = wider, count
    return rows, found
