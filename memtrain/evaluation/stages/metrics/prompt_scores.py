"""Figures of the images of one prompt, and their summary over prompts.

The figures of a prompt follow the scripts of NeMo (Hintersdorf et al., NeurIPS 2024, `metrics/compute_*.py`).
`SSCD_gen` is the median over generations of the cosine of SSCD descriptors of the same seed without and with the
mitigation. `SSCD_orig` is the highest over generations of the median over originals (`SSCD_orig_median`: the median
over generations). `D_SSCD` is the median over pairs of generations. `A_CLIP` is the median cosine of CLIP embeddings to
the prompt. Medians are torch's, the lower of two middle values.

The other figures are not from NeMo and need no networks: `MS_SSIM_gen`, `D_MS_SSIM` (pairs of generations),
`pixels_gen` and `pixels_orig` (root mean square difference: the median over originals of the nearest generation). Over
prompts: median and MAD, of all and of each type that the prompt file names, with a bootstrap interval over prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memtrain.errors import DataError
from memtrain.evaluation.measures.copy_descriptors import reduce_similarity
from memtrain.evaluation.measures.medians import median_and_mad
from memtrain.evaluation.measures.nemo_metrics import pairwise_median
from memtrain.evaluation.measures.pixels import pixel_distance
from memtrain.functional.noise import SMALLEST, pairwise_similarity

RESAMPLES = 1000


def sscd_scores(made: Tensor, plain: Tensor | None, own: Tensor | None) -> dict[str, float]:
    """Compute NeMo's figures of descriptors of unit length.

    Args:
        made: descriptors `(K, D)` of generations.
        plain: descriptors `(K, D)` of the same seeds without the mitigation.
        own: descriptors `(R, D)` of the originals.
    """
    found = {}
    if plain is not None:
        found["SSCD_gen"] = float((made * plain).sum(dim=1).median())
    if own is not None:
        each = (made @ own.T).median(dim=1).values
        found |= {"SSCD_orig": float(each.max()), "SSCD_orig_median": float(each.median())}
    if len(made) > 1:
        found["D_SSCD"] = float(pairwise_median(made[None])[0])
    return found


def pixel_scores(made: Sequence[Tensor], plain: Sequence[Tensor] | None, own: Sequence[Tensor]) -> dict[str, float]:
    """Compute figures of pixels.

    Args:
        made: K images `(3, H, W)` uint8.
        plain: images of the same seeds without the mitigation.
        own: originals of any size; each is resized to the size of the generation.
    """
    found = {}
    if plain is not None:
        pairs = list(zip(made, plain, strict=True))
        found["pixels_gen"] = _median([float(pixel_distance(a, _like(b, a))) for a, b in pairs])
        found |= _similar("MS_SSIM_gen", pairs)
    if own:
        each = [_median([float(pixel_distance(a, _like(b, a))) for b in own]) for a in made]
        found["pixels_orig"] = min(each)
    between = [(made[a], made[b]) for a in range(len(made)) for b in range(a)]
    return found | _similar("D_MS_SSIM", between)


def _similar(name: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the median MS-SSIM of pairs; empty without pairs or for too small images."""
    if not pairs or min(pairs[0][0].shape[-2:]) < SMALLEST:
        return {}
    each = [float(pairwise_similarity(a[None] / 255, _like(b, a)[None] / 255)[0]) for a, b in pairs]
    return {name: _median(each)}


def _like(image: Tensor, other: Tensor) -> Tensor:
    """Return an image in the size of another one, uint8."""
    if image.shape == other.shape:
        return image
    size = (int(other.shape[-2]), int(other.shape[-1]))
    resized = F.interpolate(image[None].float(), size=size, mode="bicubic", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _median(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).median())


def reduced(similarities: Sequence[Tensor], name: str) -> dict[str, Any]:
    """Compute the figures of the papers other than NeMo; each takes the best original first.

    Args:
        similarities: similarities `(K, R)` per prompt; K and R may differ.
        name: name of the convention.

    Raises:
        DataError: for `membench` where prompts have different numbers of generations.
    """
    best = [each.amax(dim=1) for each in similarities]
    if name != "membench":
        return reduce_similarity(torch.cat(best)[None, :, None], name)
    if len({len(each) for each in best}) > 1:
        raise DataError(
            f"Prompts have between {min(map(len, best))} and {max(map(len, best))} generations",
            expected="the same number for each: MemBench's figures take the best 1 and 3",
            remedy="give another --sscd_convention, or use the same seeds for all prompts",
        )
    return reduce_similarity(torch.stack(best)[:, :, None], name)


def over_prompts(values: Sequence[float | None], kinds: Sequence[str | None], *, seed: int = 0) -> dict[str, Any]:
    """Return median, MAD and interval of all prompts, and of each kind.

    Args:
        values: P values, None where a prompt has none.
        kinds: P kinds, None where it is not known.
        seed: seed of the bootstrap.
    """
    numbers = torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)
    found = {"all": _with_interval(numbers, seed)}
    for kind in sorted({kind for kind in kinds if kind is not None}):
        found[kind] = _with_interval(numbers[torch.tensor([one == kind for one in kinds])], seed)
    return found


def _with_interval(values: Tensor, seed: int) -> dict[str, Any]:
    known = values[~values.isnan()]
    interval = None
    if len(known) > 1:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(known), (RESAMPLES, len(known)), generator=generator)
        ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
        interval = torch.quantile(known[drawn].median(dim=1).values, ends).tolist()
    return {**median_and_mad(values), "interval": interval}


def figures(rows: Sequence[Mapping[str, float]], kinds: Sequence[str | None]) -> dict[str, Any]:
    """Return every figure of the prompts, over prompts."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: over_prompts([row.get(name) for row in rows], kinds) for name in names}
