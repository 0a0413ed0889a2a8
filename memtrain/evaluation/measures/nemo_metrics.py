"""NeMo's metrics, in the paper's convention and under its names, if the weights they need are there.

What, for P prompts with K generations each, with the neurons blocked and without:

- `SSCD_gen`: similarity of a blocked to the unblocked generation of the same seed;
- `SSCD_orig`: of the best generation to the original image (`SSCD_orig_median`: of the middle one);
- `D_SSCD`: between the generations of a prompt, so low means diverse;
- `A_CLIP`: of a generation to its prompt.

Each is the median over a prompt's generations (but for `SSCD_orig`) and then median ± MAD over prompts: all, and apart
for verbatim and template memorization: verbatim is a prompt whose best unblocked generation has an SSCD above 0.7 with
its original.
Source: Hintersdorf et al., "Finding NeMo" (NeurIPS 2024), section 4 and the authors' scripts.
Also: `FID` and `CLIP_FID` of generations to images that were never trained on, where weights are given. KID is
:mod:`memtrain.evaluation.measures.kid`.
Weights: files of your own (:mod:`memtrain.evaluation.measures.copy_descriptors`,
:mod:`memtrain.evaluation.measures.clip_scores`).
A metric whose weights are not given is left out, never replaced: what needs no weights has names of its own
(:mod:`memtrain.evaluation.stages.localize.localize`).
Cannot: be compared with figures of other SSCD conventions. Embedded 64-pixel images are far from what SSCD and CLIP
were trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.evaluation.measures.clip_scores import ClipFeatures
from memtrain.evaluation.measures.copy_descriptors import (
    Descriptor,
    convention,
    describe_images,
    load_descriptor,
    reduce_similarity,
)
from memtrain.evaluation.measures.frechet import frechet_distance
from memtrain.evaluation.measures.medians import median_and_mad

VERBATIM = 0.7
"""SSCD above which the paper calls a prompt verbatim memorized; the others are templates."""
INCEPTION_SIZE = 299


@dataclass(frozen=True)
class Weights:
    """Local files of the networks that the papers measure with; what is None is not measured.

    Attributes:
        sscd: TorchScript or ONNX. TorchScript runs what is in the file: give only what you trust.
        clip: folder of a CLIP model.
        inception: TorchScript Inception that maps uint8 images to 2048 features, such as inception-2015-12-05.pt. The
            same warning holds.
        sscd_convention: which paper's preprocessing and reduction `SSCD` figures follow.
    """

    sscd: str | None = None
    clip: str | None = None
    inception: str | None = None
    sscd_convention: str = "nemo"


def nemo_metrics(
    blocked: Tensor,
    unblocked: Tensor,
    *,
    references: Tensor,
    prompts: Sequence[str],
    weights: Weights,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Every metric of the paper whose weights are given.

    Args:
        blocked: `(P, K, 3, H, W)` uint8, sampled with the neurons off.
        unblocked: the same seeds with all neurons.
        references: `(P, R, 3, H, W)` uint8, the original images of each prompt.
        prompts: P prompts.
        weights: local files.
        device: where networks run.

    Returns:
        Per metric `all`, `verbatim` and `template`, each with `median`, `mad` and `n`; without SSCD no split is known
        and there is `all` alone. With another convention than NeMo's, that paper's figures of the similarity to the
        originals, under its name.

    Raises:
        ConfigurationError: if a file is not what it should be, or the convention is not known.
    """
    by = convention(weights.sscd_convention)
    found: dict[str, Any] = {}
    verbatim: Tensor | None = None
    if weights.sscd is not None:
        descriptor: Descriptor = load_descriptor(weights.sscd, device=device)
        with_mask, without, own = (
            describe_images(descriptor, images, by=by) for images in (blocked, unblocked, references)
        )
        to_own = with_mask @ own.mT
        before = without @ own.mT
        if weights.sscd_convention == "nemo":
            verbatim = before.median(dim=2).values.amax(dim=1) > VERBATIM
            median_of = {
                "SSCD_gen": (with_mask * without).sum(dim=2).median(dim=1).values,
                "SSCD_orig": to_own.median(dim=2).values.amax(dim=1),
                "SSCD_orig_median": to_own.median(dim=2).values.median(dim=1).values,
                "D_SSCD": pairwise_median(with_mask),
            }
            found |= {name: by_kind(values, verbatim) for name, values in median_of.items()}
            found["without_mask"] = {
                "SSCD_orig": by_kind(before.median(dim=2).values.amax(dim=1), verbatim),
                "D_SSCD": by_kind(pairwise_median(without), verbatim),
            }
        else:
            name = weights.sscd_convention
            found[f"SSCD ({name})"] = reduce_similarity(to_own, name)
            found["without_mask"] = {f"SSCD ({name})": reduce_similarity(before, name)}
        found["sscd_convention"] = {"name": weights.sscd_convention, "paper_weights": by.weights}
    if weights.clip is not None:
        clip = ClipFeatures(weights.clip, device=device)
        texts = clip.texts(prompts)
        for place, images in ((found, blocked), (found.setdefault("without_mask", {}), unblocked)):
            alignment = (clip.images(images) * texts[:, None]).sum(dim=2).median(dim=1).values
            place["A_CLIP"] = by_kind(alignment, verbatim)
        found["clip"] = clip.name
    return found


def pairwise_median(descriptors: Tensor) -> Tensor:
    """Median cosine between the generations of each prompt, `(P, K, D)` to `(P,)`; NaN for a single generation."""
    count = descriptors.shape[1]
    if count < 2:
        return torch.full((len(descriptors),), torch.nan)
    first, second = torch.tril_indices(count, count, offset=-1)
    cosine = F.cosine_similarity(descriptors[:, first], descriptors[:, second], dim=2)
    return cosine.median(dim=1).values


def by_kind(values: Tensor, verbatim: Tensor | None) -> dict[str, Any]:
    """Median ± MAD of all prompts, and apart for verbatim and template memorization where that is known."""
    found = {"all": median_and_mad(values)}
    if verbatim is not None:
        found |= {"verbatim": median_and_mad(values[verbatim]), "template": median_and_mad(values[~verbatim])}
    return found


def distribution_metrics(
    real: Tensor, generated: Tensor, *, weights: Weights, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """FID and CLIP-FID, as far as weights are given.

    Args:
        real: `(n, 3, H, W)` uint8.
        generated: `(m, 3, H, W)` uint8.
        weights: local files.
        device: where networks run.

    Raises:
        ConfigurationError: if a file is not what it should be.
    """
    found: dict[str, Any] = {}
    if weights.inception is not None:
        inception = load_inception(weights.inception, device=device)
        found["FID"] = frechet_distance(inception(real), inception(generated))
    if weights.clip is not None:
        clip = ClipFeatures(weights.clip, device=device)
        found["CLIP_FID"] = frechet_distance(*(clip.images(images, unit=False) for images in (real, generated)))
    return found


def load_inception(path: str | Path, *, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """From uint8 images to Inception's pooled features, by a TorchScript file (loading it runs what is in it).

    Images are resized to 299 pixels bicubically with antialiasing, as clean-fid does, and given in 0 to 255. A network
    whose forward has an argument `return_features`, as inception-2015-12-05.pt has, is asked for them.

    Raises:
        ConfigurationError: if the file does not exist or its answer has another shape.
    """
    network = load_descriptor(path, device=device, ask_for="return_features")
    size = (INCEPTION_SIZE, INCEPTION_SIZE)

    def features(images: Tensor) -> Tensor:
        found = []
        for part in images.split(32):
            pixels = F.interpolate(part.float(), size=size, mode="bicubic", antialias=True).clamp(0, 255)
            found.append(network(pixels).flatten(1))
        joined = torch.cat(found)
        if len(joined) != len(images):
            raise ConfigurationError(
                f"{path} answered {len(images)} images with {len(joined)} vectors",
                expected="one vector of features per image",
                remedy="use an Inception network without its last layer",
            )
        return joined

    return features
