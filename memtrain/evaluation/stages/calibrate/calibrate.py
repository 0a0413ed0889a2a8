"""Calibration of a search for neurons, on prompts that are not memorized.

It measures the mean and deviation of every neuron's activation, and the similarity between seeds above which a prompt
counts as memorized.
Source: NeMo (Hintersdorf et al., NeurIPS 2024): mean plus one standard deviation of the prompts' highest pairwise
similarity.
The stage writes `neurons/` to the output folder, which the stage `localize` reads, and `calibration.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import memtrain
from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.parts import PARTS, Done, Parts
from memtrain.evaluation.stages.provenance import provenance
from memtrain.evaluation.stages.results_file import write_results
from memtrain.evaluation.stages.roles import NEURONS, Roles, distinct
from memtrain.evaluation.stages.shards import WHOLE, Shard
from memtrain.localization import locate as search
from memtrain.localization.authors_files import write_statistics
from memtrain.localization.predictor import Predictor
from memtrain.localization.results import read_search
from memtrain.localization.settings import Settings
from memtrain.localization.threshold import pairwise_scores
from memtrain.models.fingerprint import fingerprint

SCHEMA_VERSION = 1
"""Version of `calibration.json`."""


def calibrate(
    given: StageInput,
    *,
    settings: Settings | None = None,
    export: Path | None = None,
    shard: Shard | None = WHOLE,
) -> dict[str, Any]:
    """Measure activation statistics and threshold, and keep them for `localize`.

    Args:
        given: the Stable Diffusion 1.x or 2.x pipeline, the prompts and the output folder. The calibration takes the
            controls that `localize` takes; if all prompts have the same known truth or none, it takes all prompts.
        settings: the settings of the search.
        export: the file for the statistics in the format of NeMo's scripts; None for no file.
        shard: the share of the prompts of this process, if several share an output folder. None to score none, and
            merge the results of other processes.

    Returns:
        The content of `calibration.json`.

    Raises:
        ConfigurationError: if there are too few prompts, if there are memorized prompts but no controls, or if the
            folder holds the results of a search with another calibration.
        UnfinishedParts: if this share is scored, and that of another process is not.
    """
    kinds = {prompt.memorized for prompt in given.prompts}
    if True in kinds and False not in kinds:
        raise ConfigurationError(
            f"None of the {len(given.prompts)} prompts is known not to be memorized",
            expected="prompts with 0 in the column `memorized`, or a file with ordinary prompts only",
            remedy="name another file with --prompts",
        )
    others = [prompt.text for prompt in given.prompts]  # repeated prompts count repeatedly, as in NeMo's script
    if len(kinds) > 1:
        prompts = [given.prompts[row] for row in distinct(given.prompts)]
        others = [prompts[row].text for row in Roles.of(prompts).calibrating]
    settings = settings or Settings()
    predictor = Predictor.of(given.pipeline, steps=settings.steps)
    parts = Parts(given.output / PARTS, _identity(given, predictor, others, settings), shard=shard)
    scores = None
    if read_search(given.output / NEURONS) is None:  # else the existing calibration stays
        scores = _scores(predictor, others, settings, parts)
    statistics, threshold = search.calibrate(
        predictor, others, output=given.output / NEURONS, settings=settings, scores=scores
    )
    if export is not None:
        write_statistics(statistics, export)
    results = {
        "schema_version": SCHEMA_VERSION,
        **provenance(given.pipeline),
        "model": given.model,
        "threshold": asdict(threshold),
        "statistics": {
            "prompts": statistics.count,
            "layers": len(statistics.mean),
            "neurons": sum(map(len, statistics.mean.values())),
        },
    }
    return parts.closed(write_results(results, given.output / "calibration.json"))


def _identity(given: StageInput, predictor: Predictor, others: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Return everything that the scores depend on."""
    return {
        "memtrain": memtrain.__version__,
        "pipeline": fingerprint(given.pipeline),
        "prompts": list(others),
        "settings": json.loads(settings.json()),
        "batch": predictor.batch_size,
    }


def _scores(predictor: Predictor, others: Sequence[str], settings: Settings, parts: Parts) -> Tensor:
    """Return the similarities of the prompts, `(P, K)`, measured in one denoiser call after the other."""
    at_once = max(1, predictor.batch_size // settings.seeds)

    def scored(start: int) -> Done:
        return Done({"scores": pairwise_scores(predictor, others[start : start + at_once], settings=settings)})

    units = {f"prompts-{start:06d}": partial(scored, start) for start in range(0, len(others), at_once)}
    parts.share(units, what="batches of prompts")
    return torch.cat([torch.zeros(0, settings.seeds), *(parts.read(name).tensors["scores"] for name in units)])
