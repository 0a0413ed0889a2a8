"""The stage `measure`: what does a finished run reproduce, and what did training say?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from diffusers import StableDiffusionPipeline

from memtrain.cli.run_folder import choose_prompts, excluded_images, images_of
from memtrain.data.module import TextImageDataModule
from memtrain.detectors.base import Detector
from memtrain.evaluation.measures.heldout_loss import heldout_loss
from memtrain.evaluation.stages.measure.evaluate_run import evaluate_run
from memtrain.evaluation.stages.measure.samples import Prompt
from memtrain.evaluation.stages.measure.screen import print_results
from memtrain.records import read_table


def measure(
    pipeline: StableDiffusionPipeline,
    data: TextImageDataModule,
    *,
    run: Path,
    config: dict[str, Any],
    output: Path,
    detectors: Sequence[Detector],
    seeds: Sequence[int],
    steps: int,
    guidance_scale: float,
    batch_size: int,
    max_prompts: int,
    unique_prompts: int,
    false_positive_rate: float | None,
    kid: bool | None,
) -> dict[str, Any]:
    """Sample prompts of every group, measure replication, and compare with the run's records.

    Args:
        pipeline: the trained pipeline.
        data: the run's data, built.
        run: the run's folder.
        config: the run's configuration; stored as it is.
        output: folder of the results.
        detectors: run on the same sampling.
        seeds: of the images of each prompt.
        steps: sampling steps.
        guidance_scale: of classifier-free guidance.
        batch_size: images sampled at once.
        max_prompts: prompts at most in each group but that of unique images.
        unique_prompts: prompts of images that were trained on once per epoch.
        false_positive_rate: sets the threshold; None for 0.01, or the lowest that the held-out prompts can promise.
        kid: measure KID; None if its features are installed.

    Returns:
        The content of `results.json`.
    """
    train, held = data.train_dataset, data.heldout_dataset
    assert train is not None
    assert held is not None
    records = run / "records"
    evidence = read_table(records, "evidence") if (records / "evidence.parquet").is_file() else None
    chosen = choose_prompts(
        data,
        most=max_prompts,
        unique=unique_prompts,
        flagged=_flagged(evidence),
        excluded=excluded_images(run, config, data),
    )
    if false_positive_rate is None:
        false_positive_rate = max(0.01, 1 / (len(chosen[-1][2]) + 1))
    captions = [
        Prompt(dataset.samples[row].key, dataset.samples[row].caption, group)
        for group, dataset, rows in chosen
        for row in rows
    ]
    own = torch.cat([images_of(dataset, rows) for _, dataset, rows in chosen if rows])
    every = list(range(len(held.samples)))
    loss = heldout_loss(pipeline, images_of(held, every), captions=[sample.caption for sample in held.samples])
    results = evaluate_run(
        pipeline,
        captions,
        own_images=own,
        training_images=images_of(train, list(range(len(train.samples)))),
        training_keys=[sample.key for sample in train.samples],
        output=output,
        templates=data.template,
        visits=data.visits_per_epoch,
        evidence=evidence,
        heldout_loss=float(loss.mean()),
        kid=kid,
        config=config,
        detectors=detectors,
        seeds=seeds,
        steps=steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        false_positive_rate=false_positive_rate,
    )
    print_results(results, output)
    return results


def _flagged(evidence: pa.Table | None) -> set[str]:
    if evidence is None or "flagged" not in evidence.column_names:
        return set()
    return set(evidence.filter(evidence["flagged"])["key"].to_pylist())
