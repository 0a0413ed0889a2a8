"""Which of these prompts does a model memorize? Scores prompts without images of their own, for any pipeline.

Written to the output folder: `prompts.parquet`, one row per prompt with its length and each detector's score, and
`detection.json` with figures, settings and versions. Where the file says which prompts are memorized, each detector is
measured (`detection_figures.py`), beside the prompts' length alone, because a score that length explains is no
detection; and so are all of them together (`combined.py`), whose column holds out-of-fold log odds.

Prompts are scored in fixed groups of as many as fill one batch, and each group's scores are written soon after. So a
killed detection goes on where it stopped, and neither that nor the number of processes that share the work changes a
bit of the table. What is kept of a prompt is its scores. `detection/` in the output folder holds what is on its way
(`score_parts.py`), and the results of earlier detections of other settings.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor
from tqdm.auto import tqdm

import memtrain
from memtrain.detectors.base import Detector
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.denoiser_calls import prompt_lengths
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.detect.combined import combine, reason_against
from memtrain.evaluation.stages.detect.ranking_figures import ranking_figures
from memtrain.evaluation.stages.detect.score_parts import ScoreParts, keep_earlier
from memtrain.evaluation.stages.prompts import known_truth
from memtrain.evaluation.stages.provenance import provenance
from memtrain.evaluation.stages.results_file import write_results
from memtrain.evaluation.stages.shards import Shard
from memtrain.models.fingerprint import fingerprint
from memtrain.records import write_parquet

SCHEMA_VERSION = 2
"""Of `detection.json` and `prompts.parquet`."""
WHOLE = Shard()
"""All prompts in one process."""


def detect(
    given: StageInput,
    detectors: Sequence[Detector],
    *,
    shard: Shard | None = WHOLE,
    part_seconds: float = 30.0,
    left_out: Mapping[str, str] | None = None,
) -> dict[str, Any] | None:
    """Score prompts and write the results.

    Args:
        given: pipeline, P prompts, settings of the sampling and output folder; what an earlier call with the same
            settings scored there is not scored again.
        detectors: each gives one score per prompt.
        shard: the part of the prompts to score, where several processes share an output folder; None to score
            nothing and merge what they wrote.
        part_seconds: scores are written at least this often; what a killed process loses.
        left_out: names of detectors that were asked for and cannot read this pipeline, with the reason.

    Returns:
        The content of `detection.json`; None if other processes have not scored their parts yet. Whoever is last
        merges.

    Raises:
        ConfigurationError: if there is nothing to score.
        RecordError: if there is nothing to score and scores are missing.
    """
    if not given.prompts or not detectors:
        raise ConfigurationError(
            f"Nothing to score: {len(given.prompts)} prompts, {len(detectors)} detectors",
            expected="at least one of each",
            remedy="change the settings",
        )
    texts = [prompt.text for prompt in given.prompts]
    identity = {
        "pipeline": fingerprint(given.pipeline),
        "prompts": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "detectors": [_configuration(detector) for detector in detectors],
        "sampling": {**given.sampling.said(), "batch_size": given.sampling.batch_size},
        "memtrain": memtrain.__version__,
    }
    parts = ScoreParts(given.output / "detection", identity, detectors=[detector.name for detector in detectors])
    if shard is not None:
        _score(given, detectors, parts=parts, shard=shard, part_seconds=part_seconds)
        if len(parts.done()) < len(texts):
            return None
    table = parts.merged(len(texts))
    keep_earlier(given.output, key=parts.key, names=("detection.json", "prompts.parquet"))
    lengths, uncut = (prompt_lengths(given.pipeline, texts, truncation=cut) for cut in (True, False))
    truth = known_truth(given.prompts)
    scores = {detector.name: torch.tensor(table[detector.name].to_pylist()).double() for detector in detectors}
    combined, together = _combined(scores, truth, texts)
    results = {
        "schema_version": SCHEMA_VERSION,
        **provenance(),
        "key": parts.key,
        "identity": identity,
        "model": given.model,
        "sampling": identity["sampling"],
        "prompts": len(texts),
        "truncated_prompts": int((uncut > lengths).sum()),
        "seconds_per_prompt": sum(table["seconds"].to_pylist()) / len(texts),
        "prompt_length": None if truth is None else ranking_figures(lengths.double(), torch.tensor(truth)),
        "detectors": _figures(given, detectors, scores, truth=truth, lengths=lengths),
        "combined": together,
        **({"left_out": dict(left_out)} if left_out else {}),
    }
    columns = {
        "prompt": texts,
        "memorized": pa.array([prompt.memorized for prompt in given.prompts], pa.bool_()),
        "prompt_length": lengths.tolist(),
        **{detector.name: table[detector.name] for detector in detectors},
        **({} if combined is None else {"combined": combined.tolist()}),
    }
    write_parquet(pa.table(columns), given.output / "prompts.parquet")
    return write_results(results, given.output / "detection.json")


def _figures(
    given: StageInput,
    detectors: Sequence[Detector],
    scores: Mapping[str, Tensor],
    *,
    truth: list[bool] | None,
    lengths: Tensor,
) -> dict[str, Any]:
    """What each detector costs and, where the truth is known, how well it ranks."""
    figures: dict[str, Any] = {}
    seeds, steps = len(given.sampling.seeds), given.sampling.steps
    for detector in detectors:
        figures[detector.name] = {
            "higher_means_memorized": detector.higher_means_memorized,
            "cost": detector.cost,
            "denoiser_calls": seeds * (detector.calls(steps) + detector.extra_forwards(steps)),
        }
        if truth is not None:
            oriented = scores[detector.name] * (1 if detector.higher_means_memorized else -1)
            keys = [prompt.text for prompt in given.prompts]
            figures[detector.name] |= ranking_figures(oriented, torch.tensor(truth), lengths=lengths, keys=keys)
    return figures


def _configuration(detector: Detector) -> dict[str, str]:
    """What tells two detectors apart."""
    kind = type(detector)
    settings = {name: repr(value) for name, value in sorted(vars(detector).items())}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "name": detector.name, **settings}


def _score(
    given: StageInput, detectors: Sequence[Detector], *, parts: ScoreParts, shard: Shard, part_seconds: float
) -> None:
    """Score this process's prompts that have no scores yet."""
    sampling, count = given.sampling, len(given.prompts)
    each = sampling.prompts_at_once
    groups = [range(start, min(start + each, count)) for start in range(0, count, each)]
    done = parts.done()
    own = groups[shard.index :: shard.count]
    left = [group for group in own if not done.issuperset(group)]
    total, scored = sum(map(len, own)), sum(map(len, own)) - sum(map(len, left))
    rows: list[dict[str, Any]] = []
    written = time.perf_counter()
    description = "scoring" if shard.count == 1 else f"scoring, part {shard}"
    with tqdm(total=total, initial=scored, desc=description, unit="prompt", disable=not sampling.progress) as bar:
        try:
            for group in left:
                start = time.perf_counter()
                texts = [given.prompts[row].text for row in group]
                readings = read_prompts_with(given.pipeline, texts, detectors, sampling=sampling.quiet)
                scores = {detector.name: detector.score(readings[detector.name]).tolist() for detector in detectors}
                seconds = (time.perf_counter() - start) / len(group)
                rows += [
                    {"row": row, "seconds": seconds, **{name: values[at] for name, values in scores.items()}}
                    for at, row in enumerate(group)
                ]
                bar.update(len(group))
                if time.perf_counter() - written >= part_seconds:
                    parts.append(rows, shard=str(shard))
                    rows, written = [], time.perf_counter()
        finally:
            parts.append(rows, shard=str(shard))


def _combined(
    scores: dict[str, Tensor], truth: list[bool] | None, texts: Sequence[str]
) -> tuple[Tensor | None, dict[str, Any] | None]:
    """Out-of-fold log odds of all detectors together, and their figures or why there are none."""
    if truth is None:
        return None, None
    labels = torch.tensor(truth)
    usable = {name: score for name, score in scores.items() if bool(torch.isfinite(score).all())}
    reason = reason_against(labels, texts) if len(usable) > 1 else "fewer than two detectors with finite scores"
    if reason is not None:
        return None, {"auroc": None, "interval": None, "reason": reason}
    odds, said = combine(usable, labels, texts)
    return odds, {**ranking_figures(odds, labels), **said}
