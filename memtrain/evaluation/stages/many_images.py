"""Comparison with very many training images: a part of them represents all.

An evaluation compares with all training images up to `most` (20,000), without this module. With more images, it
compares with

- the files of the sampled pictures, at most :data:`OWN_FILES` for each prompt;
- the nearest images of every generation, of every own image and of :data:`LOOKED_AT` random training images. The index
  of descriptors proposes them (:mod:`memtrain.evaluation.measures.training_index`), at most :data:`CANDIDATES` each,
  and fewer if the part would exceed `most`;
- a random choice of :data:`RANDOM` images, the same in every evaluation, for the typical distance of pictures.

The nearest training image is among the candidates if the index proposes it. Means over many images (the denominator of
the ratio of pixel distances is the mean to the 50 nearest) are taken over the part. Such a mean is larger than over all
images, and the ratio smaller. Generations for held-out prompts, which set the threshold, are measured in the same way,
so the stated false-positive rate holds. The results describe the part. Only these images are read, when they are
needed.
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
"""Largest number of training images that are all compared."""
CANDIDATES, RANDOM, OWN_FILES = 16, 4096, 32
IN_MEMORY = 1 << 30
"""Largest size in bytes of images in memory; more images go to a file."""


@dataclass(frozen=True)
class Bounds:
    """Settings of the comparison with training images.

    Attributes:
        most: the largest number of training images that are all compared.
        index: the folder for the index of more images; None for the default folder.
        part: the index and count of the processes that build the index together.
        prompts_only: whether to read no training images, and build only the own part of the index; for a process that
            only samples.
    """

    most: int = ALL_COMPARED
    index: Path | None = None
    part: tuple[int, int] = (0, 1)
    prompts_only: bool = False


@dataclass(frozen=True, kw_only=True)
class ComparedPart:
    """The part of N training images that represents all.

    Attributes:
        keys: the keys of all N images.
        rows: the numbers of the images in the part, ascending, `(m,)` int64.
        images: the images in the part, `(m, 3, H, W)` uint8.
        random: the numbers of the random choice, ascending.
        looked_at: the numbers of random images whose nearest images are also in the part.
        candidates: the number of candidates of each generation; 0 before the sampling.
        index: the index that proposes candidates.
        read: a function that reads an image by its number.
        identity: a name that identifies the images.
        most: the largest number of images in the part.
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
        """Places of the random choice in the part."""
        return torch.searchsorted(self.rows, self.random)

    @property
    def looked_at_places(self) -> Tensor:
        """Places in the part of the images that are compared with their nearest."""
        return torch.searchsorted(self.rows, self.looked_at)

    @property
    def name(self) -> str:
        """Name of the images in the part."""
        return sha256(repr((self.identity, self.rows.tolist())).encode()).hexdigest()

    @property
    def part_keys(self) -> list[str]:
        """Keys of the images in the part."""
        return [self.keys[row] for row in self.rows.tolist()]

    def said(self) -> dict[str, Any]:
        """Return the description of the part for the results."""
        return {
            "images": len(self.keys),
            "compared": len(self.rows),
            "random": len(self.random),
            "candidates": self.candidates,
            "search": self.index.search,
            "descriptor": self.index.described_by,
        }

    def line(self) -> str:
        """Describe the part for the screen and for readers of the results."""
        return (
            f"The evaluation compares with {len(self.rows):,} of {len(self.keys):,} training images: the "
            f"{self.candidates} nearest of each generation by {self.index.described_by} ({self.index.search} search), "
            f"the files of the sampled pictures, and {len(self.random):,} random images for mean distances"
        )

    def with_candidates(self, generated: Tensor, store: Path | None) -> ComparedPart:
        """Add the nearest images of generations to the part.

        Args:
            generated: the generations, `(P, K, 3, H, W)` uint8.
            store: the folder for images that do not fit in memory.
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
    """Make the part that is known before the sampling.

    Args:
        keys: the keys of all N images.
        index: the complete index.
        read: a function that reads an image by its number.
        own: the numbers of each prompt's own images.
        own_images: the own images, also of held-out prompts, `(P, 3, H, W)` uint8.
        identity: a name that identifies the images.
        most: the largest number of images in the part.
        store: the folder for images that do not fit in memory.
    """
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(keys), generator=draw)
    random = order[: min(RANDOM, max(1, most // 4))]
    looked_at = random[:LOOKED_AT]
    files = torch.tensor(sorted({row for rows in own for row in rows[:OWN_FILES]}), dtype=torch.int64)
    base = torch.cat([files, random]).unique()
    around = torch.cat([own_images, read_images(read, looked_at.tolist(), None, identity=identity)])
    # One more, because a training image is its own nearest. Half of the part is left for the generations.
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
    """Read images `(n, 3, H, W)` uint8 with several threads, into memory, or into a file if they do not fit.

    Args:
        read: a function that reads an image by its number.
        numbers: the numbers of the images.
        store: the folder for a file of these images; None to always use memory.
        identity: a name that identifies all images.
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
    """Return the numbers of a part with the nearest images that fit, and how many of each image fit."""
    rows, found = base, 0
    for count in range(1, nearest.shape[1] + 1):
        wider = torch.cat([base, nearest[:, :count].flatten()]).unique()
        if len(wider) > max(most, len(base)) and count > 1:
            break
        rows, found = wider, count
    return rows, found
