"""NeMo's metrics, in the paper's convention and under its names, where their weights are given.

Figures for P prompts with K generations each, with the neurons blocked and without:

- `SSCD_gen`: similarity of a blocked to the unblocked generation of the same seed;
- `SSCD_orig`: similarity of the best generation to the original image (`SSCD_orig_median`: of the median generation);
- `D_SSCD`: similarity between the generations of a prompt, so low means diverse;
- `A_CLIP`: similarity of a generation to its prompt.

Each is the median over a prompt's generations (except `SSCD_orig`) and then median ± MAD over prompts, in all and
separately for verbatim and template memorization. A prompt is verbatim if its best unblocked generation has an SSCD
above 0.7 with its original.
Source: Hintersdorf et al., "Finding NeMo" (NeurIPS 2024), section 4 and the authors' scripts.
Also: `FID` and `CLIP_FID` of generations against images that were never trained on, where weights are given. KID is
:mod:`memtrain.evaluation.measures.kid`.
Weights: local files (:mod:`memtrain.families.network_file`,
:mod:`memtrain.evaluation.measures.clip_scores`).
A metric without weights is left out, never replaced: figures that need no weights have other names
(:mod:`memtrain.evaluation.stages.localize.localize`).
Cannot: be compared with figures of other SSCD conventions. Embedded 64-pixel images are far from what SSCD and CLIP
were trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.measures.clip_scores import ClipFeatures
from memtrain.evaluation.measures.copy_descriptors import (
    convention,
    describe_images,
    reduce_similarity,
)
from memtrain.evaluation.measures.frechet import frechet_distance
from memtrain.evaluation.measures.medians import median_and_mad
from memtrain.evaluation.measures.weights import Weights
from memtrain.families.network_file import load_network

VERBATIM = 0.7
"""SSCD above which the paper calls a prompt verbatim memorized; the others are templates."""
INCEPTION_SIZE = 299


def nemo_metrics(
    blocked: Tensor,
    unblocked: Tensor,
    *,
    references: Tensor | None,
    prompts: Sequence[str],
    weights: Weights,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Compute every metric of the paper with given weights, for images with and without a mitigation.

    Args:
        blocked: images `(P, K, 3, H, W)` uint8, sampled with the neurons off or with a mitigation.
        unblocked: images of the same seeds without it.
        references: original images of each prompt, `(P, R, 3, H, W)` uint8; None leaves out the metrics that need them.
        prompts: P prompts.
        weights: local files.
        device: device of the networks.

    Returns:
        Per metric `all`, `verbatim` and `template`, each with `median`, `mad` and `n`; without SSCD or originals only
        `all`. With another convention than NeMo's, that paper's figures of the similarity to the originals, under its
        name. `without_mask` has the figures of the unblocked images.

    Raises:
        ConfigurationError: if a file is not what it should be, or the convention is not known.
    """
    by = convention(weights.sscd_convention)
    found: dict[str, Any] = {}
    verbatim: Tensor | None = None
    if weights.sscd is not None:
        descriptor = load_network(weights.sscd, device=device)
        masked, plain = (describe_images(descriptor, images, by=by) for images in (blocked, unblocked))
        own = None if references is None else describe_images(descriptor, references, by=by)
        verbatim = is_verbatim(plain, own, weights.sscd_convention)
        found |= _similarities(masked, own, weights.sscd_convention, verbatim)
        if weights.sscd_convention == "nemo":
            found["SSCD_gen"] = by_kind((masked * plain).sum(dim=2).median(dim=1).values, verbatim)
        found["without_mask"] = _similarities(plain, own, weights.sscd_convention, verbatim)
        found["sscd_convention"] = {"name": weights.sscd_convention, "paper_weights": by.weights}
    if weights.clip is not None:
        clip = ClipFeatures(weights.clip, device=device)
        for place, images in ((found, blocked), (found.setdefault("without_mask", {}), unblocked)):
            place["A_CLIP"] = by_kind(_alignment(clip, images, prompts), verbatim)
        found["clip"] = clip.name
    return found


def image_metrics(
    images: Tensor,
    *,
    references: Tensor | None,
    prompts: Sequence[str],
    weights: Weights,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Compute the same figures for images of a model without mitigation.

    Args:
        images: images `(P, K, 3, H, W)` uint8.
        references: original images of each prompt, `(P, R, 3, H, W)` uint8, or of all prompts, `(R, 3, H, W)`, such as
            all training images (`dcr`); None leaves out the metrics that need them.
        prompts: P prompts.
        weights: local files.
        device: device of the networks.

    Raises:
        ConfigurationError: if a file has other content, or the convention is not known.
    """
    by = convention(weights.sscd_convention)
    found: dict[str, Any] = {}
    verbatim: Tensor | None = None
    if weights.sscd is not None:
        descriptor = load_network(weights.sscd, device=device)
        made = describe_images(descriptor, images, by=by)
        own = None if references is None else describe_images(descriptor, references, by=by)
        verbatim = is_verbatim(made, own, weights.sscd_convention)
        found |= _similarities(made, own, weights.sscd_convention, verbatim)
        found["sscd_convention"] = {"name": weights.sscd_convention, "paper_weights": by.weights}
    if weights.clip is not None:
        clip = ClipFeatures(weights.clip, device=device)
        found |= {"A_CLIP": by_kind(_alignment(clip, images, prompts), verbatim), "clip": clip.name}
    return found


def is_verbatim(made: Tensor, own: Tensor | None, name: str) -> Tensor | None:
    """Return `(P,)` bool, whether the best generation is a verbatim copy, in NeMo's convention; None in the others.

    Args:
        made: descriptors of generations, `(P, K, D)`.
        own: descriptors of originals, `(P, R, D)` or `(R, D)`, if they are known.
        name: name of the convention.
    """
    if own is None or name != "nemo":
        return None
    return (made @ own.mT).median(dim=2).values.amax(dim=1) > VERBATIM


def _similarities(made: Tensor, own: Tensor | None, name: str, verbatim: Tensor | None) -> dict[str, Any]:
    """Compute figures of descriptors `(P, K, D)`, in a paper's convention."""
    if name != "nemo":
        return {} if own is None else {f"SSCD ({name})": reduce_similarity(made @ own.mT, name)}
    found = {"D_SSCD": by_kind(pairwise_median(made), verbatim)}
    if own is not None:
        each = (made @ own.mT).median(dim=2).values
        found["SSCD_orig"] = by_kind(each.amax(dim=1), verbatim)
        found["SSCD_orig_median"] = by_kind(each.median(dim=1).values, verbatim)
    return found


def _alignment(clip: ClipFeatures, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the `(P,)` median cosine between a prompt and its images `(P, K, 3, H, W)`."""
    return (clip.images(images) * clip.texts(prompts)[:, None]).sum(dim=2).median(dim=1).values


def pairwise_median(descriptors: Tensor) -> Tensor:
    """Return the median cosine between generations of a prompt, `(P, K, D)` to `(P,)`; NaN for one generation."""
    count = descriptors.shape[1]
    if count < 2:
        return torch.full((len(descriptors),), torch.nan)
    first, second = torch.tril_indices(count, count, offset=-1)
    cosine = F.cosine_similarity(descriptors[:, first], descriptors[:, second], dim=2)
    return cosine.median(dim=1).values


def by_kind(values: Tensor, verbatim: Tensor | None) -> dict[str, Any]:
    """Return median ± MAD of all prompts, and separately for verbatim and template memorization where that is known."""
    found = {"all": median_and_mad(values)}
    if verbatim is not None:
        found |= {"verbatim": median_and_mad(values[verbatim]), "template": median_and_mad(values[~verbatim])}
    return found


def distribution_metrics(
    real: Tensor, generated: Tensor, *, weights: Weights, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Compute FID and CLIP-FID, where weights are given.

    Args:
        real: real images `(n, 3, H, W)` uint8.
        generated: generated images `(m, 3, H, W)` uint8.
        weights: local files.
        device: device of the networks.

    Raises:
        ConfigurationError: if a file is not what it should be.
        DataError: with fewer than two images of one kind.
    """
    if min(len(real), len(generated)) < 2:
        raise DataError(
            f"{len(real)} real and {len(generated)} generated images have no distribution to compare",
            expected="at least 2 images each, better 10,000",
            remedy="sample more images",
        )
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
    network = load_network(path, device=device, ask_for="return_features")
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
