"""Effect and cost of an inference-time mitigation: every prompt is sampled with and without it, from the same noise.

The stage measures, separately for memorized and other prompts and with intervals:

- replication, if the prompts' own images are known: the ratio of :mod:`memtrain.evaluation.measures.replication`,
  compared with the images of the other prompts. The threshold comes from the prompts known not to be memorized, sampled
  without the mitigation. Without own images, only the distance of each image to the image of the same seed without the
  mitigation. A large distance does not show that a copy went away, but a small distance shows that nothing changed;
- diversity, the pixel distance between the images of a prompt;
- fidelity to the prompt (:mod:`memtrain.evaluation.measures.fidelity`), judged without the mitigation;
- seconds per image, with and without in turn, batch by batch.

It writes `mitigation.json`, `mitigation.parquet` (a row per image), `mitigation.png` (own image, without, with), and
the images in `mitigation/`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.measures.clip_scores import ClipFeatures
from memtrain.evaluation.measures.fidelity import clip_similarity, retrieved
from memtrain.evaluation.measures.nemo_metrics import distribution_metrics, nemo_metrics
from memtrain.evaluation.measures.pixels import distance_between_prompts, diversity, pixel_distance
from memtrain.evaluation.measures.replication import (
    check_images,
    replication,
    reproduction_threshold,
    same_picture,
)
from memtrain.evaluation.measures.weights import Weights
from memtrain.evaluation.sampling.generate import generate, sampled_size
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.sampling.stored_samples import identity_of
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.mitigate.changes import Measured, summarize
from memtrain.evaluation.stages.mitigate.images import images_table, write_images
from memtrain.evaluation.stages.mitigate.sheet import write_sheet
from memtrain.evaluation.stages.parts import PARTS, Done, Parts
from memtrain.evaluation.stages.prompts import PromptToScore, group_names
from memtrain.evaluation.stages.provenance import provenance
from memtrain.evaluation.stages.results_file import write_results
from memtrain.evaluation.stages.shards import WHOLE, Shard
from memtrain.functional.ranking import mean_with_interval
from memtrain.inference.base import InferenceMitigation
from memtrain.records import write_parquet

SCHEMA_VERSION = 1
"""Version of `mitigation.json` and `mitigation.parquet`."""
CONDITIONS = ("without", "mitigated")
MINIMUM_OTHERS = 19
"""Smallest number of prompts known not to be memorized for a threshold; a false-positive rate of 5 % needs them."""


def mitigate(
    given: StageInput,
    mitigation: InferenceMitigation,
    *,
    weights: Weights | None = None,
    judge: StableDiffusionPipeline | None = None,
    false_positive_rate: float | None = None,
    others: int = 4,
    fidelity_timesteps: int = 8,
    shard: Shard | None = WHOLE,
) -> dict[str, Any]:
    """Sample prompts with and without a mitigation, compare, and write the results.

    Args:
        given: the Stable Diffusion pipeline, P prompts, their own images if they are known, the settings of the
            sampling and the output folder. The pipeline is not changed.
        mitigation: the mitigation to measure.
        weights: the weight files of further networks; a CLIP model among them judges fidelity.
        judge: the pipeline whose loss judges fidelity without a CLIP model; by default the unmitigated one.
        false_positive_rate: the probability that a prompt whose image was never trained on counts as reproduced. By
            default, the lowest that the number of prompts known not to be memorized allows, and at least 0.01.
        others: the number of prompts that each image's own prompt is compared with.
        fidelity_timesteps: the number of timesteps of the judge's loss.
        shard: the share of the batches of this process; None to sample none, and merge the results of other processes.

    Returns:
        The content of `mitigation.json`.

    Raises:
        DataError: if prompts and own images do not belong together.
        CalibrationError: if too few prompts are known not to be memorized for the rate.
        ConfigurationError: if settings contradict each other, a file of weights does not fit, or the mitigation does
            not support the pipeline.
        UnfinishedParts: if other processes have not sampled their share.
    """
    prompts, pipeline, own_images, weights = given.prompts, given.pipeline, given.own_images, weights or Weights()
    _check(prompts, own_images)
    if false_positive_rate is not None and own_images is not None:
        reproduction_threshold(torch.zeros(sum(one.memorized is False for one in prompts)), false_positive_rate)
    judging = None if weights.clip is None else ClipFeatures(weights.clip, device=pipeline.device)
    known = [prompt.memorized for prompt in prompts]
    sampling = given.sampling.sized_as(own_images)
    parts = Parts(given.output / PARTS, _identity(given, mitigation, sampling), shard=shard)
    images, seconds = _sample(given, mitigation, sampling, parts)
    rate, device = false_positive_rate, pipeline.device
    ratios, reproduction = _reproduction(known, images, own_images, false_positive_rate=rate, device=device)
    judged, fidelity = _fidelity(
        judge or pipeline,
        images,
        [prompt.text for prompt in prompts],
        clip=judging,
        others=others,
        timesteps=fidelity_timesteps,
    )
    if fidelity["measure"] == "retrieved":
        fidelity["judge"] = "the model without mitigation" if judge is None else "another model"
    each = zip(ratios, images, judged, strict=True)
    measured = [Measured(ratio=ratio, diversity=diversity(one), fidelity=faithful) for ratio, one, faithful in each]
    moved = pixel_distance(images[1], images[0])
    threshold = reproduction.get("threshold")
    count = len(prompts) * len(sampling.seeds)
    results = {
        "schema_version": SCHEMA_VERSION,
        **provenance(pipeline),
        "model": given.model,
        "mitigation": repr(mitigation),
        "sampling": {**sampling.said(), "batch_size": sampling.batch_size, "images": 2 * count},
        "prompts": len(prompts),
        "reproduction": reproduction,
        "fidelity": fidelity,
        "distance_between_prompts": distance_between_prompts(images[0]),
        "groups": summarize(known, without=measured[0], mitigated=measured[1], moved=moved, threshold=threshold),
        "seconds_per_image": _timing(seconds, per_image=count),
        **({"networks": _networks(given, images, weights)} if weights.any else {}),
    }
    paths = write_images(given.output, images, sampling.seeds)
    table = images_table(prompts, sampling.seeds, measured, moved, threshold=threshold, paths=paths)
    write_parquet(table, given.output / "mitigation.parquet")
    write_sheet(given.output / "mitigation.png", prompts, without=images[0], mitigated=images[1], own_images=own_images)
    return parts.closed(write_results(results, given.output / "mitigation.json"))


def _networks(given: StageInput, images: Sequence[Tensor], weights: Weights) -> dict[str, Any]:
    """Measure NeMo's metrics by group, with the mitigation as blocked neurons, and FID to images never trained on."""
    groups = group_names([prompt.memorized for prompt in given.prompts])
    found: dict[str, Any] = {"groups": {}}
    for name in dict.fromkeys(groups):
        rows = [row for row, group in enumerate(groups) if group == name]
        found["groups"][name] = nemo_metrics(
            images[1][rows],
            images[0][rows],
            references=None if given.own_images is None else given.own_images[rows][:, None],
            prompts=[given.prompts[row].text for row in rows],
            weights=weights,
            device=given.pipeline.device,
        )
    rest = [row for row, prompt in enumerate(given.prompts) if prompt.memorized is False]
    if given.own_images is not None and len(rest) > 1:
        real, device = given.own_images[rest], given.pipeline.device
        for name, sampled in zip(("distribution_without", "distribution_with"), images, strict=True):
            found[name] = distribution_metrics(real, sampled[rest].flatten(0, 1), weights=weights, device=device)
    return found


def _check(prompts: Sequence[PromptToScore], own_images: Tensor | None) -> None:
    """Refuse input that would fail after the sampling."""
    if not prompts:
        raise ConfigurationError(
            "There are no prompts to sample", expected="at least one prompt", remedy="name prompts with --prompts"
        )
    if own_images is None:
        return
    if len(own_images) != len(prompts):
        raise DataError(
            f"{len(prompts)} prompts and {len(own_images)} own images",
            expected="one image per prompt",
            remedy="pass both in the same order, or no images",
        )
    check_images(
        own_images[:, None],
        own_images,
        own_images,
        neighbours=1,
        family=same_picture(own_images),
    )


def _reproduction(
    known: Sequence[bool | None],
    images: Sequence[Tensor],
    own_images: Tensor | None,
    *,
    false_positive_rate: float | None,
    device: Any,
) -> tuple[list[Tensor | None], dict[str, Any]]:
    """Ratios `(P, K)` of both conditions, and the threshold or the reason why there is none."""
    if own_images is None:
        return [None, None], {"reason": "the prompts' own images are not known"}
    family = same_picture(own_images)
    position = torch.arange(len(own_images))
    ratios = [
        replication(found, own_images, training=own_images, own_index=position, family=family, device=device).ratio
        for found in images
    ]
    rest = torch.tensor([truth is False for truth in known])
    count = int(rest.sum())
    if count < MINIMUM_OTHERS:
        reason = f"{count} prompts known not to be memorized; a threshold needs {MINIMUM_OTHERS}"
        return [*ratios], {"reason": reason}
    rate = max(0.01, 1 / (count + 1)) if false_positive_rate is None else false_positive_rate
    threshold = reproduction_threshold(ratios[0][rest].amin(dim=1), rate)
    return [*ratios], {"threshold": threshold, "false_positive_rate": rate, "n_others": count}


def _fidelity(
    judge: StableDiffusionPipeline,
    images: Sequence[Tensor],
    texts: list[str],
    *,
    clip: ClipFeatures | None,
    others: int,
    timesteps: int,
) -> tuple[list[Tensor | None], dict[str, Any]]:
    """Fidelity `(P, K)` of both conditions, and how it was measured."""
    if clip is not None:
        return [clip_similarity(clip, found, texts) for found in images], {
            "measure": "clip_similarity",
            "model": clip.name,
        }
    different = len(set(texts))
    if different <= others:
        return [None, None], {"measure": None, "reason": f"{different} different prompts, at least {others + 1} needed"}
    if not isinstance(judge, StableDiffusionPipeline):
        kind = type(judge).__name__
        return [None, None], {"measure": None, "reason": f"no denoising loss of {kind} is known; name a CLIP model"}
    judged = [retrieved(judge, found, texts, others=others, timesteps=timesteps).float() for found in images]
    return [*judged], {"measure": "retrieved", "chance": 1 / (1 + others), "others": others, "timesteps": timesteps}


def _identity(given: StageInput, mitigation: InferenceMitigation, sampling: Sampling) -> dict[str, Any]:
    """Everything that images depend on."""
    texts = [prompt.text for prompt in given.prompts]
    size = sampled_size(given.pipeline, sampling)
    return {**identity_of(given.pipeline, texts, sampling, (), size=size), "mitigation": repr(mitigation)}


def _sample(
    given: StageInput, mitigation: InferenceMitigation, sampling: Sampling, parts: Parts
) -> tuple[tuple[Tensor, Tensor], list[tuple[float, float]]]:
    """Return images `(P, K, 3, H, W)` without and with the mitigation, and the seconds of each batch."""
    texts = [prompt.text for prompt in given.prompts]
    together = sampling.prompts_at_once

    def both(number: int) -> Done:
        start = number * together
        part, taken, images = texts[start : start + together], [0.0, 0.0], {}
        # In turn, because the first batch of a pair can be slower.
        for condition in (0, 1) if number % 2 else (1, 0):
            begin = time.perf_counter()
            with mitigation(given.pipeline) if condition else nullcontext():
                trace = generate(given.pipeline, part, sampling=sampling.quiet)
            taken[condition] = time.perf_counter() - begin
            images[CONDITIONS[condition]] = trace.images
        return Done(images, taken)

    numbers = range(-(-len(texts) // together))
    names = [f"batch-{number:06d}" for number in numbers]
    units = {name: partial(both, number) for number, name in zip(numbers, names, strict=True)}
    parts.share(units, what="batches sampled twice")
    found = [parts.read(name) for name in names]
    without, mitigated = (torch.cat([one.tensors[name] for one in found]) for name in CONDITIONS)
    return (without, mitigated), [(one.facts[0], one.facts[1]) for one in found]


def _timing(seconds: list[tuple[float, float]], *, per_image: int) -> dict[str, Any]:
    """Return seconds per image, and the ratio of paired batches; the first pair only warms up if there are more."""
    total = torch.tensor(seconds, dtype=torch.float64)
    pairs = total[1:] if len(total) > 1 else total
    ratio = mean_with_interval(pairs[:, 1] / pairs[:, 0])
    return {
        "without": float(total[:, 0].sum()) / per_image,
        "with": float(total[:, 1].sum()) / per_image,
        "ratio": ratio["mean"],
        "ratio_interval": ratio["interval"],
        "batches": len(pairs),
    }
