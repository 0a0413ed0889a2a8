"""Neurons by contribution: an alternative to NeMo's selection for models in which no small set of neurons stands out.

Method: a mask takes the neurons whose contribution for a prompt differs most from the mean over other prompts. The
contribution to the next layer is the mean over tokens of |v − v̄| · ‖w‖, where w is the neuron's column of the layer's
output projection. The neurons of all layers are ranked together. The same share is taken for every prompt that counts
as memorized, by NeMo's threshold of the similarity between seeds.
Source: ours. NeMo compares the absolute activation in standard deviations, layer by layer and without the output
projection, and searches only down blocks and the middle. In the embedded model a prompt's image survives as long as
text is read anywhere, so NeMo's search does not find enough neurons (benchmarks/RESULTS.md, "Neuron masking, and
whether the image is gone").
Cost: the value layers on the text embeddings, and one denoiser call on 10 seeds per prompt. There is no refinement.
Suggested: a share of 0.4 of all neurons on the embedded model; on larger models a smaller share, if it is enough.
Cannot: be precise. A large share also removes much of the prompt's meaning, so use masks for their own prompts only.
Works on UNets.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from memtrain.errors import ConfigurationError, ProbeError
from memtrain.files.prompt_texts import prompt_list
from memtrain.functional.noise import SimilarityWindow
from memtrain.functional.ranking import highest
from memtrain.localization.found import Found
from memtrain.localization.predictor import Predictor
from memtrain.localization.published import upper_pairs
from memtrain.localization.results import Localization
from memtrain.localization.selection import Lists
from memtrain.localization.settings import Settings
from memtrain.localization.threshold import Threshold, calibrate_threshold, pairwise

EVERY_SITE = "*"


def locate_contributions(
    pipeline: StableDiffusionPipeline | Predictor,
    prompts: Sequence[str],
    *,
    other_prompts: Sequence[str],
    share: float = 0.4,
    threshold: Threshold | float | None = None,
    sites: str = EVERY_SITE,
    settings: Settings | None = None,
) -> Localization:
    """Find masks for the prompts that a model memorizes.

    Args:
        pipeline: the Stable Diffusion 1.x or 2.x pipeline, or a predictor of another UNet.
        prompts: the prompts to search; a repeated prompt is searched once.
        other_prompts: prompts that the model does not memorize, at least two.
        share: the share of the neurons of all searched layers in a mask.
        threshold: the similarity between seeds above which a prompt counts as memorized; by default calibrated on
            `other_prompts`.
        sites: the glob over the attention sites.
        settings: the settings of the similarity (`seeds`, `seed`, `steps`, `call`, `data_range`).

    Raises:
        ConfigurationError: if the share is out of range, or there are too few prompts.
        ProbeError: if the model is no UNet with value and output projections.
    """
    settings, prompts = settings or Settings(), prompt_list(prompts)
    other_prompts = prompt_list(other_prompts, name="other_prompts")
    if not 0 < share < 1 or not prompts or len(other_prompts) < 2:
        raise ConfigurationError(
            f"share={share} of {len(prompts)} prompts, compared with {len(other_prompts)} others",
            expected="a share between 0 and 1, a list of prompts, and at least 2 other prompts",
            remedy="change share, prompts or other_prompts",
        )
    predictor = pipeline if isinstance(pipeline, Predictor) else Predictor.of(pipeline, steps=settings.steps)
    chosen = predictor.sites(sites)
    if threshold is None:
        threshold = calibrate_threshold(predictor, other_prompts, settings=settings, source="given")
    window = SimilarityWindow.of(*predictor.shape[1:])
    if isinstance(threshold, Threshold):
        threshold.check(settings, window)
    limit = threshold.value if isinstance(threshold, Threshold) else float(threshold)
    texts = list(dict.fromkeys(prompts))
    start = time.perf_counter()
    scores = contributions(predictor, texts, sites=chosen, other_prompts=other_prompts)
    matrices = pairwise(predictor, texts, settings=settings)
    similarity = matrices.amax(dim=2)
    seconds = (time.perf_counter() - start) / len(texts)
    found = []
    for row, prompt in enumerate(texts):
        kept = int((similarity[row] > limit).sum())
        neurons = top_share([layer[row] for layer in scores], share) if kept else ()
        found.append(
            Found(
                prompt=prompt,
                similarity=float(similarity[row].max()),
                kept_seeds=kept,
                calls=1,
                images=settings.seeds,
                seconds=seconds,
                initial=neurons,
                refined=neurons,
                pairs=upper_pairs(matrices[row]),
                refinement="contribution" if neurons else None,
            )
        )
    search: dict[str, Any] = {
        "selection": "contribution",
        "share": share,
        "settings": json.loads(settings.json()),
        "threshold": limit,
        "window": asdict(window),
        "model": predictor.name,
        "fingerprint": predictor.fingerprint(chosen),
        "sites": list(chosen),
    }
    return Localization(tuple(found), tuple(chosen), search)


@torch.no_grad()
def contributions(
    predictor: Predictor, prompts: Sequence[str], *, sites: dict[str, nn.Module], other_prompts: Sequence[str]
) -> list[Tensor]:
    """Compute the contribution of each neuron for each prompt beyond that for others, `(P, C)` fp32 for each site.

    Raises:
        ProbeError: if a site has no output projection of its values' width.
    """
    with predictor.evaluating():
        text, others = predictor.encode(prompts), predictor.encode(other_prompts)
        found = []
        for name, site in sites.items():
            layer = predictor.layer(site)
            output: Any = getattr(site, "to_out", [None])[0]
            values = layer(text).float()
            if not isinstance(output, nn.Linear) or output.in_features != values.shape[-1]:
                raise ProbeError(
                    f"The site {name!r} has no linear output projection of {values.shape[-1]} values",
                    expected="a UNet's cross-attention, without adapters",
                    remedy="merge adapters, or use memtrain.localization.locate.locate",
                )
            difference = (values - layer(others).float().mean(dim=0)).abs().mean(dim=1)
            found.append((difference * output.weight.float().norm(dim=0)).cpu())
    return found


def top_share(scores: Sequence[Tensor], share: float) -> Lists:
    """Choose the neurons with the highest scores over all layers, at least one; of equal scores the first.

    Args:
        scores: the scores of each layer, `(C,)`.
        share: the share of all neurons.
    """
    flat = torch.cat(list(scores))
    wanted = torch.zeros(len(flat), dtype=torch.bool)
    wanted[highest(flat, max(1, round(share * len(flat))))] = True
    parts = wanted.split([len(layer) for layer in scores])
    return tuple(tuple(part.nonzero().squeeze(1).tolist()) for part in parts)
