"""What a measure of copying is: images become features, and two features a number that is higher for copies.

Every measure answers the same questions in the same way (:func:`compare`): how alike is a generation to the picture of
its prompt, to the nearest of all training pictures, and to the other generations of its prompt. What number counts as a
copy is calibrated on the data at hand (:mod:`memtrain.evaluation.measures.copying.calibration`).
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
"""Training pictures described and compared at once."""


@dataclass(frozen=True)
class CopyWeights:
    """Files of networks that measures of copying may use; none is downloaded.

    Attributes:
        copy_detector: file of an SSCD network, ONNX or TorchScript. TorchScript runs what is in it: give only what you
            trust.
        convention: of the paper whose preprocessing of images is followed
            (:mod:`memtrain.evaluation.measures.copy_descriptors`).
        vision: folder of a DINO, DINOv2 or CLIP model, as `save_pretrained` writes it.
        deep_ssim: file in which the network of `deep_ssim` is kept; trained and written where it is not there.
    """

    copy_detector: str | None = None
    convention: str = "nemo"
    vision: str | None = None
    deep_ssim: str | None = None


class CopyMeasure(ABC):
    """Says how alike images are; a higher number means a copy, whatever the measure.

    Attributes:
        name: in options, results and columns.
        candidates: how many training pictures a generation is compared with, the nearest by :meth:`quick`; None for
            all. For measures that take milliseconds a pair.
        version: what features depend on besides the image, such as a hash of weights; changes whenever they do. None
            where it is not known: features are then not kept on disk.
    """

    name: str
    candidates: int | None = None
    version: str | None = None

    @classmethod
    def reason_missing(cls, weights: CopyWeights) -> str | None:
        """What the measure lacks to be made with these weights; None if it lacks nothing."""
        return None

    @classmethod
    def made(cls, weights: CopyWeights) -> Self:
        """The measure with these weights."""
        return cls()

    def learn(self, training: Tensor) -> None:
        """Learn what the measure needs from training pictures `(m, 3, H, W)` uint8; most need nothing."""
        return None

    @abstractmethod
    def describe(self, images: Tensor) -> Tensor:
        """Features of images `(n, 3, H, W)` uint8, `(n, ...)` on the CPU."""

    @abstractmethod
    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """`(n, m)` of features `(n, ...)` and `(m, ...)`; higher for copies."""

    def quick(self, first: Tensor, second: Tensor) -> Tensor:
        """The same as :meth:`similarity`, but cheap, and only good enough to choose candidates by."""
        return self.similarity(first, second)

    def reason_against(self, size: tuple[int, int]) -> str | None:
        """Why images of this height and width cannot be measured; None if they can."""
        return None


def scaled(images: Tensor, side: int) -> Tensor:
    """Images `(n, 3, H, W)` uint8 as squares `(n, 3, side, side)` fp32 from 0 to 1; areas are averaged."""
    values = images.float() / 255
    if values.shape[-2:] == (side, side):
        return values
    return F.interpolate(values, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def pictures(images: Tensor) -> list[Image.Image]:
    """Images `(n, 3, H, W)` uint8 as PIL images."""
    return [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]


@dataclass(frozen=True)
class Compared:
    """Similarities of P prompts with K generations each.

    Attributes:
        own: `(P, K)` to the picture of the prompt; to the most alike one where it has several files.
        nearest: `(P, K)` to the most alike training picture, the own one included.
        nearest_index: `(P, K)` int64, which training image that is.
        other: `(P, K)` to the most alike training picture that is not the own one.
        between: `(P,)` highest similarity of two generations of the prompt; NaN with one generation.
    """

    own: Tensor
    nearest: Tensor
    nearest_index: Tensor
    other: Tensor
    between: Tensor

    @property
    def best(self) -> Tensor:
        """`(P,)` highest similarity to the own picture over generations."""
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
        generated: `(P, K, 3, H, W)` uint8.
        own: `(P, 3, H, W)` uint8, the picture of each prompt, trained on or not.
        training: `(M, 3, H, W)` uint8, each training image once; may lie in a file that is mapped into memory.
        mine: per prompt the indices in `training` of its own picture (all of its files); none for a held-out one.
        features: of the training images, where they are at hand.

    Returns:
        On the CPU, fp32.
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
    """Training images, and their features where they are at hand."""

    measure: CopyMeasure
    images: Tensor
    features: Tensor | None

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        return self.measure.describe(self.images[which]) if self.features is None else self.features[which]

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Where each block begins, and its features."""
        for start in range(0, len(self.images), AT_ONCE):
            yield start, self[start : start + AT_ONCE]


def candidates(
    measure: CopyMeasure, queries: Tensor, training: TrainingImages, *, count: int, hidden: Tensor | None = None
) -> Tensor:
    """Indices of the training images that are nearest by the quick similarity, `(n, count)`, or all if there are fewer.

    Args:
        measure: the measure.
        queries: features of n images.
        training: M images.
        count: how many for each.
        hidden: `(n, M)` bool, images that come last for an image.
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
    """Nearest, its index, and nearest of others, `(P, K)` each; other files of own pictures may raise `alike`."""
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
    """The same, of each prompt's own files and its candidates alone."""
    assert measure.candidates is not None  # compare asks
    prompts, seeds = alike.shape
    # One more than is asked for, because the own picture is among them and is no other.
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
