"""Interface of measures of copying: images become features, and two features a number that is higher for copies.

All measures are used in the same way (:func:`compare`). They give the similarity of a generation to the picture of its
prompt, to the nearest training picture, and to the other generations of its prompt. The threshold of a copy is
calibrated on the data (:mod:`memtrain.evaluation.measures.copying.calibration`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

AT_ONCE = 256
"""Number of training pictures described and compared at once."""


@dataclass(frozen=True)
class CopyWeights:
    """Files of networks for measures of copying; no file is downloaded.

    Attributes:
        copy_detector: the ONNX or TorchScript file of an SSCD network. TorchScript runs code of the file, so name only
            files that you trust.
        convention: the name of the paper whose preprocessing is used
            (:mod:`memtrain.evaluation.measures.copy_descriptors`).
        vision: the folder of a DINO, DINOv2 or CLIP model, as `save_pretrained` writes it.
        deep_ssim: the file of the network of `deep_ssim`, which is trained and written if the file does not exist.
    """

    copy_detector: str | None = None
    convention: str = "nemo"
    vision: str | None = None
    deep_ssim: str | None = None


class CopyMeasure(ABC):
    """Similarity of images; for every measure, a higher number means a copy.

    Attributes:
        name: the name in options, results and columns.
        candidates: the number of training pictures that a generation is compared with, the nearest by :meth:`quick`;
            None for all. It is for measures that take milliseconds per pair.
        version: the state of the measure that features depend on, such as a hash of weights. None if it is not known;
            features are then not kept on disk.
    """

    name: str
    candidates: int | None = None
    version: str | None = None

    @classmethod
    def reason_missing(cls, weights: CopyWeights) -> str | None:
        """Return the reason why the measure cannot be made with these weights; None if it can."""
        return None

    @classmethod
    def made(cls, weights: CopyWeights) -> Self:
        """Make the measure with these weights."""
        return cls()

    def learn(self, training: Tensor) -> None:
        """Train the measure on training pictures `(m, 3, H, W)` uint8; most measures need no training."""
        return None

    @abstractmethod
    def describe(self, images: Tensor) -> Tensor:
        """Compute features `(n, ...)` of images `(n, 3, H, W)` uint8, on the CPU."""

    @abstractmethod
    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Compute similarities `(n, m)` of features `(n, ...)` and `(m, ...)`; higher for copies."""

    def quick(self, first: Tensor, second: Tensor) -> Tensor:
        """Compute a cheap similarity, good enough to choose candidates by."""
        return self.similarity(first, second)

    def reason_against(self, size: tuple[int, int]) -> str | None:
        """Return why images of this height and width cannot be measured; None if they can."""
        return None


def scaled(images: Tensor, side: int) -> Tensor:
    """Scale images `(n, 3, H, W)` uint8 to squares `(n, 3, side, side)` fp32 from 0 to 1, by averaging areas."""
    values = images.float() / 255
    if values.shape[-2:] == (side, side):
        return values
    return F.interpolate(values, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def pictures(images: Tensor) -> list[Image.Image]:
    """Convert images `(n, 3, H, W)` uint8 to PIL images."""
    return [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]


@dataclass(frozen=True)
class Compared:
    """Similarities of P prompts with K generations each.

    Attributes:
        own: the similarity to the picture of the prompt, `(P, K)`; to its most similar file if it has several.
        nearest: the similarity to the most similar training picture, with the own picture, `(P, K)`.
        nearest_index: the index of this training image, `(P, K)` int64.
        other: the similarity to the most similar training picture without the own picture, `(P, K)`.
        between: the highest similarity of two generations of the prompt, `(P,)`; NaN with one generation.
    """

    own: Tensor
    nearest: Tensor
    nearest_index: Tensor
    other: Tensor
    between: Tensor

    @property
    def best(self) -> Tensor:
        """Highest similarity to the own picture over generations, `(P,)`."""
        return self.own.amax(dim=1)


def compare(
    measure: CopyMeasure,
    generated: Tensor,
    own: Tensor,
    *,
    training: Tensor,
    mine: Sequence[Sequence[int]],
    features: Tensor | None = None,
) -> Compared:
    """Compare generations with their own picture, with all training pictures and with each other.

    Args:
        measure: the measure.
        generated: the generations, `(P, K, 3, H, W)` uint8.
        own: the picture of each prompt, trained on or not, `(P, 3, H, W)` uint8.
        training: the training images, each once, `(M, 3, H, W)` uint8; they may be mapped from a file.
        mine: the indices in `training` of all files of each prompt's own picture; none for a held-out picture.
        features: the features of the training images, if they are known.

    Returns:
        The similarities on the CPU, fp32.
    """
    prompts, seeds = generated.shape[:2]
    queries, targets = measure.describe(generated.flatten(0, 1)), measure.describe(own)
    alike = torch.stack(
        [measure.similarity(queries[p * seeds : (p + 1) * seeds], targets[p : p + 1])[:, 0] for p in range(prompts)]
    )
    images = TrainingImages(measure, training, features)
    if measure.candidates is not None and measure.candidates < len(training):
        nearest, index, other = _of_candidates(measure, queries, images, mine=mine, alike=alike)
    else:
        nearest, index, other = _of_all(measure, queries, images, mine=mine, alike=alike)
    between = torch.full((prompts,), torch.nan)
    if seeds > 1:
        for prompt in range(prompts):
            rows = queries[prompt * seeds : (prompt + 1) * seeds]
            pairs = measure.similarity(rows, rows)
            between[prompt] = pairs[torch.triu(torch.ones_like(pairs), diagonal=1).bool()].max()
    return Compared(alike.float(), nearest.float(), index, other.float(), between.float())


@dataclass(frozen=True)
class TrainingImages:
    """Training images, with their features if they are known."""

    measure: CopyMeasure
    images: Tensor
    features: Tensor | None

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        return self.measure.describe(self.images[which]) if self.features is None else self.features[which]

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the start and the features of each block."""
        for start in range(0, len(self.images), AT_ONCE):
            yield start, self[start : start + AT_ONCE]


def candidates(
    measure: CopyMeasure, queries: Tensor, training: TrainingImages, *, count: int, hidden: Tensor | None = None
) -> Tensor:
    """Find the training images that are nearest by the quick similarity, `(n, count)`, or all if there are fewer.

    Args:
        measure: the measure.
        queries: the features of n images.
        training: the M training images.
        count: the number of candidates of each image.
        hidden: the training images that come last for an image, `(n, M)` bool.
    """
    values, places = torch.zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.int64)
    for start, block in training.blocks():
        found = measure.quick(queries, block)
        if hidden is not None:
            found = found.masked_fill(hidden[:, start : start + len(block)], -torch.inf)
        columns = torch.arange(start, start + len(block)).expand(len(queries), -1)
        values, kept = torch.cat([values, found], dim=1).sort(dim=1, descending=True, stable=True)
        places = torch.cat([places, columns], dim=1).gather(1, kept)
        values, places = values[:, :count], places[:, :count]
    return places


def _of_all(
    measure: CopyMeasure, queries: Tensor, training: TrainingImages, *, mine: Sequence[Sequence[int]], alike: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return nearest, its index, and nearest of others, `(P, K)`; further files of own pictures can raise `alike`."""
    prompts, seeds = alike.shape
    nearest = torch.full((prompts, seeds), -torch.inf)
    other, index = nearest.clone(), torch.full((prompts, seeds), -1)
    belongs = [set(indices) for indices in mine]
    for start, block in training.blocks():
        found = measure.similarity(queries, block).view(prompts, seeds, -1)
        best, where = found.max(dim=2)
        index = torch.where(best > nearest, where + start, index)
        nearest = torch.maximum(nearest, best)
        for prompt, indices in enumerate(belongs):
            inside = [one - start for one in indices if start <= one < start + len(block)]
            if inside:
                alike[prompt] = torch.maximum(alike[prompt], found[prompt][:, inside].amax(dim=1))
                found[prompt][:, inside] = -torch.inf
        other = torch.maximum(other, found.amax(dim=2))
    return nearest, index, other


def _of_candidates(
    measure: CopyMeasure, queries: Tensor, training: TrainingImages, *, mine: Sequence[Sequence[int]], alike: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same as :func:`_of_all` with each prompt's own files and its candidates only."""
    assert measure.candidates is not None  # checked by compare
    prompts, seeds = alike.shape
    # One more, because the own picture can be among the candidates and does not count as another.
    places = candidates(measure, queries, training, count=measure.candidates + 1)
    nearest = torch.full((prompts, seeds), -torch.inf)
    other, index = nearest.clone(), torch.full((prompts, seeds), -1)
    for prompt in range(prompts):
        rows = slice(prompt * seeds, (prompt + 1) * seeds)
        own = torch.tensor(list(mine[prompt]), dtype=torch.int64)
        columns = torch.cat([places[rows].flatten(), own]).unique()
        found = measure.similarity(queries[rows], training[columns])
        nearest[prompt], where = found.max(dim=1)
        index[prompt] = columns[where]
        belongs = torch.isin(columns, own)
        if belongs.any():
            alike[prompt] = torch.maximum(alike[prompt], found[:, belongs].amax(dim=1))
        if not belongs.all():
            other[prompt] = found[:, ~belongs].amax(dim=1)
    return nearest, index, other
