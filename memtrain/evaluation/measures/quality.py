"""The quality of a model's images: every figure with an interval and the network that it was measured with.

Method: `fid`, `clip_fid` and `kid_inception` are distances to real images. `clip_score` measures whether images show
what their captions say. `caption_fidelity` is the share of images nearer to their own caption than to every other one.
`diversity` and `diversity_clip` are the distances between the generations of a caption. `heldout_loss` is the loss on
held-out images.
Backends: local networks (:class:`memtrain.evaluation.measures.weights.Weights`), none of which is downloaded. The
formulas agree with torchmetrics: the same features give the same FID, KID (with one subset of all images) and CLIP
score, as tests check. A figure without its network has `value` None and a `reason`.
Intervals: bootstrap over prompts, because the generations of one prompt are similar.
Cost: a forward of each network per image.
Cannot: show that a picture is no copy. A model that returns its training images has excellent figures here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import DataError
from memtrain.evaluation.measures.clip_scores import ClipFeatures
from memtrain.evaluation.measures.distribution_figures import frechet_figure, kernel_figure
from memtrain.evaluation.measures.nemo_metrics import load_inception
from memtrain.evaluation.measures.pixels import diversity
from memtrain.evaluation.measures.weights import Weights
from memtrain.functional.ranking import mean_with_interval

NO_CLIP = "no CLIP model was named (--clip FOLDER)"
NO_INCEPTION = "no Inception network was named (--inception FILE)"


def quality_figures(
    images: Tensor,
    *,
    prompts: Sequence[str],
    real: Tensor | None,
    weights: Weights,
    losses: Tensor | None = None,
    bootstrap: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, Any]]:
    """All figures of quality of P prompts with K generations each.

    Args:
        images: `(P, K, 3, H, W)` uint8, best of prompts that were not trained on.
        prompts: P prompts.
        real: `(n, 3, H, W)` uint8, real images that were not trained on, of any number; None leaves distances out.
        weights: local files.
        losses: `(n,)` denoising losses of held-out images
            (:func:`memtrain.evaluation.measures.heldout_loss.heldout_loss`), where they were measured.
        bootstrap: `seed`, `resamples` and `level` of the intervals.
        device: where networks run.

    Returns:
        By name: `value` (None where `reason` says why), `interval`, `n` or `n_real` and `n_generated`, `backend`.

    Raises:
        ConfigurationError: if a file is not what it should be.
        DataError: if images and prompts do not belong together.
    """
    if len(images) != len(prompts) or not len(images):
        raise DataError(f"{len(images)} prompts' images and {len(prompts)} prompts", expected="as many, at least one")
    options = dict(bootstrap or {})
    flat, groups = images.flatten(0, 1), [row for row in range(images.shape[0]) for _ in range(images.shape[1])]
    missing = None if real is not None and len(real) > 1 and len(flat) > 1 else "no images to compare with"
    found: dict[str, dict[str, Any]] = {}
    if weights.inception is None or missing:
        found["fid"] = found["kid_inception"] = _none(NO_INCEPTION if weights.inception is None else missing)
    else:
        assert real is not None  # nothing is missing
        inception = load_inception(weights.inception, device=device)
        features = inception(real), inception(flat)
        backend = f"local TorchScript {Path(weights.inception).name}"
        found["fid"] = frechet_figure(*features, groups=groups, **_fewer(options)) | {"backend": backend}
        found["kid_inception"] = kernel_figure(*features, groups=groups, **options) | {"backend": backend}
    found |= _clip_figures(
        images, prompts, real=None if missing else real, weights=weights, options=options, device=device
    )
    apart = diversity(images)
    found["diversity"] = (
        _none("one generation per prompt")
        if apart is None
        else mean_figure(apart, backend="root mean square difference of pixels", options=options)
    )
    found["heldout_loss"] = (
        _none("not measured")
        if losses is None
        else mean_figure(losses, backend="the model's own denoising loss", options=options)
    )
    return found


def _clip_figures(
    images: Tensor,
    prompts: Sequence[str],
    *,
    real: Tensor | None,
    weights: Weights,
    options: Mapping[str, Any],
    device: torch.device | str,
) -> dict[str, dict[str, Any]]:
    """Compute the figures of a CLIP model, or give the reason for their absence."""
    names = ("clip_score", "caption_fidelity", "diversity_clip", "clip_fid")
    if weights.clip is None:
        return {name: _none(NO_CLIP) for name in names}
    clip = ClipFeatures(weights.clip, device=device)
    backend = f"local {clip.name}"
    plain, texts = clip.images(images, unit=False), clip.texts(prompts)
    unit = torch.nn.functional.normalize(plain, dim=-1)
    found = {
        "clip_score": clip_score(unit, texts, options=options),
        "caption_fidelity": caption_fidelity(unit, texts, prompts=prompts, options=options),
    }
    apart = embedding_diversity(unit)
    found["diversity_clip"] = (
        _none("one generation per prompt") if apart is None else mean_figure(apart, options=options)
    )
    if real is None:
        found["clip_fid"] = _none("no images to compare with")
    else:
        groups = [row for row in range(images.shape[0]) for _ in range(images.shape[1])]
        found["clip_fid"] = frechet_figure(
            clip.images(real, unit=False), plain.flatten(0, 1), groups=groups, **_fewer(options)
        )
    return {name: value | {"backend": backend} for name, value in found.items()}


def clip_score(images: Tensor, texts: Tensor, *, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """100 times the mean cosine of images to their captions, not below 0, as torchmetrics' CLIPScore.

    Args:
        images: embeddings `(P, K, D)` of unit length.
        texts: embeddings `(P, D)` of unit length.
        options: options of the bootstrap.
    """
    each = 100 * (images * texts[:, None]).sum(dim=-1).mean(dim=1)
    found = mean_figure(each, options=options)
    interval = found["interval"] and [max(end, 0.0) for end in found["interval"]]
    return found | {"value": max(found["value"], 0.0), "interval": interval, "each": each.tolist()}


def caption_fidelity(
    images: Tensor, texts: Tensor, *, prompts: Sequence[str], options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the share of generations nearer to their own caption than to every other one, in all and by caption.

    Args:
        images: embeddings `(P, K, D)` of unit length.
        texts: embeddings `(P, D)` of unit length.
        prompts: P captions; equal captions count once.
        options: options of the bootstrap.

    Returns:
        A figure with `chance` and, under `each`, the share of every caption.
    """
    different = list(dict.fromkeys(prompts))
    first = [prompts.index(prompt) for prompt in different]
    own = torch.tensor([different.index(prompt) for prompt in prompts])
    if len(different) < 2:
        return _none("a single caption is always the nearest")
    cosine = images @ texts[first].T
    right = cosine.gather(2, own[:, None, None].expand(*cosine.shape[:2], 1))[..., 0]
    others = cosine.scatter(2, own[:, None, None].expand(*cosine.shape[:2], 1), -torch.inf).amax(dim=2)
    each = (right > others).double().mean(dim=1)
    return mean_figure(each, options=options) | {"chance": 1 / len(different), "each": each.tolist()}


def embedding_diversity(images: Tensor) -> Tensor | None:
    """Return `(P,)` 1 − mean cosine between the generations `(P, K, D)` of a prompt; None with one generation."""
    count = images.shape[1]
    if count < 2:
        return None
    cosine = images @ images.mT
    return 1 - (cosine.sum(dim=(1, 2)) - cosine.diagonal(dim1=1, dim2=2).sum(dim=1)) / (count * (count - 1))


def mean_figure(
    values: Tensor, *, backend: str | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the mean of `(P,)` values with a bootstrap interval, as a figure."""
    found = mean_with_interval(values, **(options or {}))
    named = {} if backend is None else {"backend": backend}
    return {"value": found["mean"], "interval": found["interval"], "n": len(values), **named}


def _none(reason: str | None) -> dict[str, Any]:
    return {"value": None, "interval": None, "reason": reason}


def _fewer(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same bootstrap options with at most 200 resamples, which is enough for a standard error."""
    return {**options, "resamples": min(int(options.get("resamples", 200)), 200)}
