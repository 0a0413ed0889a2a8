"""One evaluation from start to end: sample, measure, compare, write.

Written to the output folder:

- `results.json`: aggregate figures, configuration, versions and seeds (:data:`SCHEMA_VERSION` names its layout);
- `samples.parquet`: one row per prompt and seed;
- `images/`: every generation and the own image of every prompt, as PNG;
- `report.html`: made from the three above alone, so it can be made again.

Everything that can be refused is refused before the first image is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.detectors.base import Detector
from memtrain.evaluation.measures.kid import EfficientNetLite0, kernel_distance, reason_to_leave_out
from memtrain.evaluation.measures.replication import check_images, replication, reproduction_threshold
from memtrain.evaluation.report.page import write_report
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.stages.measure.counts import (
    members,
    summarize_detectors,
    summarize_doses,
    summarize_groups,
    verdict,
)
from memtrain.evaluation.stages.measure.samples import Prompt, families, own_index, samples_table, write_images
from memtrain.evaluation.stages.measure.training_record import compare_with_truth, flags_and_copies
from memtrain.evaluation.stages.provenance import provenance
from memtrain.records import HELDOUT, write_json, write_parquet

SCHEMA_VERSION = 1
"""Of `results.json` and `samples.parquet`; raised when a field changes its meaning or goes away."""


def evaluate_run(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[Prompt],
    *,
    own_images: Tensor,
    training_images: Tensor,
    training_keys: Sequence[str],
    output: str | Path,
    templates: Mapping[str, str] | None = None,
    visits: Mapping[str, int] | None = None,
    evidence: pa.Table | None = None,
    directions: Mapping[str, str] | None = None,
    heldout_loss: float | None = None,
    kid: bool | None = None,
    config: Mapping[str, Any] | None = None,
    detectors: Sequence[Detector] = (),
    seeds: Sequence[int] = (0, 1, 2, 3),
    steps: int = 50,
    guidance_scale: float = 7.5,
    batch_size: int = 8,
    false_positive_rate: float = 0.05,
    neighbours: int = 50,
    level: float = 0.95,
    resamples: int = 1000,
    bootstrap_seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a trained pipeline and write the results.

    Args:
        pipeline: the trained pipeline.
        prompts: P prompts with distinct keys; held-out ones are needed for the threshold.
        own_images: `(P, 3, H, W)` uint8, the image of each prompt.
        training_images: `(M, 3, H, W)` uint8, every training image once.
        training_keys: M keys.
        output: folder to write to; files of an earlier evaluation are replaced.
        templates: what a training image is a variant of, by key. Variants of one are compared as one image, and prompts
            of one are counted as one.
        visits: visits per epoch of training images, by key; where planted ones differ, results say so per dose.
        evidence: the run's `records/evidence.parquet`, if it was monitored.
        directions: `low`, `high` or `unknown` per evidence column or prefix, where not the published one.
        heldout_loss: denoising loss on held-out samples after training.
        kid: measure KID on the held-out prompts; by default if its features are installed.
        config: anything that says where the pipeline comes from; stored as it is.
        detectors: run on the same sampling.
        seeds: K seeds; each prompt is sampled with every one.
        steps: sampling steps.
        guidance_scale: of classifier-free guidance.
        batch_size: images sampled at once.
        false_positive_rate: probability that a prompt never trained on counts as reproduced.
        neighbours: nearest training images that a distance is compared with.
        level: coverage of intervals.
        resamples: of bootstrap intervals.
        bootstrap_seed: of bootstrap intervals.
        progress: show a progress bar.

    Returns:
        The content of `results.json`.

    Raises:
        DataError: if prompts and images do not belong together.
        CalibrationError: if there are too few held-out prompts for the false-positive rate.
        ConfigurationError: if settings contradict each other.
        RecordError: if the evidence table is not one.
    """
    groups = [prompt.group for prompt in prompts]
    held = members(groups, HELDOUT)
    own = own_index(prompts, training_keys, own_images, training_images)
    templates = templates or {}
    family = families(training_keys, templates)
    check_images(own_images[:, None], own_images, training_images, neighbours=neighbours, family=family)
    reproduction_threshold(torch.zeros(int(held.sum())), false_positive_rate)
    without_kid = reason_to_leave_out(kid, prompts=int(held.sum()))
    bootstrap: dict[str, Any] = {"seed": bootstrap_seed, "resamples": resamples, "level": level}
    training = None if evidence is None else compare_with_truth(evidence, directions=directions, **bootstrap)

    trace = generate(
        pipeline,
        [prompt.caption for prompt in prompts],
        seeds=seeds,
        steps=steps,
        guidance_scale=guidance_scale,
        detectors=detectors,
        batch_size=batch_size,
        size=(int(own_images.shape[-2]), int(own_images.shape[-1])),
        progress=progress,
    )
    distances = replication(
        trace.images,
        own_images,
        training=training_images,
        own_index=own,
        family=family,
        neighbours=neighbours,
        device=pipeline.device,
    )
    repeated = torch.tensor([(visits or {}).get(key, 0) > 1 for key in training_keys])
    distance: dict[str, Any] = {"value": None, "reason": without_kid}
    if without_kid is None:
        distance = kernel_distance(
            EfficientNetLite0(),
            own_images[held],
            generated=trace.images[held],
            copies=repeated[distances.nearest[held]] if repeated.any() else None,
            batch_size=batch_size,
            device=pipeline.device,
            **bootstrap,
        )
    threshold = reproduction_threshold(distances.best[held], false_positive_rate)
    if evidence is not None and training is not None:
        copied = dict(zip((prompt.key for prompt in prompts), (distances.best < threshold).tolist(), strict=True))
        training["sampled"] = flags_and_copies(evidence, copied)
    by_group = summarize_groups(
        groups,
        distances,
        threshold=threshold,
        level=level,
        templates=[templates.get(prompt.key, prompt.key) for prompt in prompts],
    )
    planned = [(visits or {}).get(prompt.key, 0) for prompt in prompts]
    doses = summarize_doses(groups, planned, distances, threshold=threshold, level=level)
    results = {
        "schema_version": SCHEMA_VERSION,
        **provenance(),
        "config": config or {},
        "sampling": {
            "seeds": list(seeds),
            "steps": steps,
            "guidance_scale": guidance_scale,
            "scheduler": type(pipeline.scheduler).__name__,
            "images": len(prompts) * len(seeds),
        },
        "statistics": bootstrap,
        "verdict": verdict(by_group, false_positive_rate=false_positive_rate),
        "replication": {
            "threshold": threshold,
            "false_positive_rate": false_positive_rate,
            "n_heldout": int(held.sum()),
            "neighbours": distances.neighbours,
            "n_training_images": len(family.unique()),
            "groups": by_group,
            **({"doses": doses} if doses else {}),
        },
        "detectors": summarize_detectors(
            detectors,
            {detector.name: detector.score(trace.readings[detector.name]) for detector in detectors},
            groups,
            reproduced=distances.best < threshold,
            false_positive_rate=false_positive_rate,
            **bootstrap,
        ),
        "training": training,
        "quality": {"heldout_loss": heldout_loss, "kid": distance},
    }
    folder = Path(output)
    images = write_images(folder, trace, own_images)
    table = samples_table(
        prompts,
        trace,
        distances,
        threshold=threshold,
        training_keys=training_keys,
        templates=templates,
        detectors=detectors,
        evidence=evidence,
        images=images,
    )
    write_parquet(table, folder / "samples.parquet")
    plain = write_json(results, folder / "results.json")
    write_report(folder)
    return plain
