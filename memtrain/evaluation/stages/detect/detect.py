"""Detection: which prompts does a model memorize? It scores prompts without their own images, for any pipeline.

The output folder gets `prompts.parquet` with one row per prompt, its length and each detector's score, and
`detection.json` with figures, settings and versions. If the file of prompts gives the truth, each detector is measured
(`ranking_figures.py`). The length of the prompts is measured as well, because a score explained by length is no
detection. All detectors together are also measured (`combined.py`); their column holds out-of-fold log odds. With null
prompts (:mod:`memtrain.evaluation.stages.null_prompts`, or the user's own) every prompt gets p-values
(`against_null.py`).

A repeated prompt is scored and reported once, with its count. It counts as memorized if any of its lines says so. A
killed detection goes on. Neither an interruption nor the number of processes changes a bit of the table (`scoring.py`).
`detection/` in the output folder holds unfinished scores (`score_parts.py`), and the results of earlier detections with
other settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from memtrain.detectors.base import Detector
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.denoiser_calls import prompt_lengths
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.detect.against_null import Null, against_null, null_table
from memtrain.evaluation.stages.detect.combined import combine, reason_against
from memtrain.evaluation.stages.detect.ranking_figures import ranking_figures
from memtrain.evaluation.stages.detect.score_parts import keep_earlier
from memtrain.evaluation.stages.detect.scoring import Scoring
from memtrain.evaluation.stages.prompts import PromptToScore, known_truth
from memtrain.evaluation.stages.provenance import provenance
from memtrain.evaluation.stages.results_file import write_results
from memtrain.evaluation.stages.shards import Shard
from memtrain.models.fingerprint import fingerprint
from memtrain.records import write_parquet

SCHEMA_VERSION = 3
"""Version of `detection.json` and `prompts.parquet`."""
WHOLE = Shard()
"""All prompts in one process."""


def detect(
    given: StageInput,
    detectors: Sequence[Detector],
    *,
    null: Null | None = None,
    shard: Shard | None = WHOLE,
    part_seconds: float = 30.0,
    left_out: Mapping[str, str] | None = None,
) -> dict[str, Any] | None:
    """Score prompts and write the results.

    Args:
        given: the pipeline, P prompts, the settings of the sampling and the output folder. Scores of an earlier call
            with the same settings are kept.
        detectors: the detectors, each of which gives one score per prompt.
        null: the null prompts, and the detectors that read them; None for no p-values.
        shard: the share of the prompts of this process, if several share an output folder. None to score none, and
            merge the results of other processes.
        part_seconds: the largest number of seconds between two writes; a killed process loses no more.
        left_out: the reasons against detectors that cannot read this pipeline, by name.

    Returns:
        The content of `detection.json`; None if other processes have not scored their share yet. The last process
        merges.

    Raises:
        ConfigurationError: if there are no prompts or no detectors.
        RecordError: if this process only merges, and scores are missing.
    """
    if not given.prompts or not detectors:
        raise ConfigurationError(
            f"There is nothing to score: {len(given.prompts)} prompts, {len(detectors)} detectors",
            expected="at least one prompt and one detector",
            remedy="name prompts (--prompts) and detectors (--detectors)",
        )
    given_prompts = given.prompts
    given = replace(given, prompts=distinct(given.prompts))
    model = fingerprint(given.pipeline)
    texts = [prompt.text for prompt in given.prompts]
    scoring = Scoring(given, texts, detectors, model=model)
    made = None if null is None else Scoring(given, null.texts, null.detectors, model=model, what="null prompts")
    # Both tables are worked on before either is checked.
    done = [one.work(shard=shard, part_seconds=part_seconds) for one in (scoring, made) if one is not None]
    if False in done or (shard is not None and not shard.merges):
        return None
    table = scoring.table()
    keep_earlier(given.output, key=scoring.key, names=("detection.json", "prompts.parquet", "null_prompts.parquet"))
    lengths, uncut = (prompt_lengths(given.pipeline, texts, truncation=cut) for cut in (True, False))
    truth = known_truth(given.prompts)
    scores = {detector.name: torch.tensor(table[detector.name].to_pylist()).double() for detector in detectors}
    combined, together = _combined(scores, truth, texts)
    p_columns, said = ({}, None) if null is None or made is None else _against(given, null, made, scores, lengths)
    results = {
        "schema_version": SCHEMA_VERSION,
        **provenance(given.pipeline),
        "key": scoring.key,
        "identity": scoring.identity,
        "model": given.model,
        "sampling": scoring.identity["sampling"],
        "prompts": len(texts),
        "repeated_prompts": len(given_prompts) - len(texts),
        "truncated_prompts": int((uncut > lengths).sum()),
        "seconds_per_prompt": sum(table["seconds"].to_pylist()) / len(texts),
        "prompt_length": None if truth is None else ranking_figures(lengths.double(), torch.tensor(truth)),
        "detectors": _figures(given, detectors, scores, truth=truth, lengths=lengths),
        "combined": together,
        "null": said,
        **({"left_out": dict(left_out)} if left_out else {}),
    }
    columns = {
        **_asked(given_prompts, given.prompts),
        "prompt_length": lengths.tolist(),
        **p_columns,
        **{detector.name: table[detector.name] for detector in detectors},
        **({} if combined is None else {"combined": combined.tolist()}),
    }
    if null is None:
        (given.output / "null_prompts.parquet").unlink(missing_ok=True)
    write_parquet(pa.table(columns), given.output / "prompts.parquet")
    return write_results(results, given.output / "detection.json")


def distinct(prompts: Sequence[PromptToScore]) -> list[PromptToScore]:
    """Keep each prompt once, in the order of first appearance; a known truth of any line counts."""
    first: dict[str, PromptToScore] = {}
    for prompt in prompts:
        before = first.setdefault(prompt.text, prompt)
        if before.memorized is None or prompt.memorized:
            first[prompt.text] = replace(before, memorized=prompt.memorized)
    return list(first.values())


def _asked(given: Sequence[PromptToScore], kept: Sequence[PromptToScore]) -> dict[str, Any]:
    """Make the columns with the prompts, their counts and their truth."""
    times = Counter(prompt.text for prompt in given)
    return {
        "prompt": [prompt.text for prompt in kept],
        "count": [times[prompt.text] for prompt in kept],
        "memorized": pa.array([prompt.memorized for prompt in kept], pa.bool_()),
    }


def _against(
    given: StageInput, null: Null, made: Scoring, scores: Mapping[str, Tensor], lengths: Tensor
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make the columns of p-values and their figures, and write the null prompts."""
    table = made.table()
    found = {detector.name: torch.tensor(table[detector.name].to_pylist()).double() for detector in null.detectors}
    null_lengths = prompt_lengths(given.pipeline, null.texts)
    write_parquet(null_table(null, null_lengths, found), given.output / "null_prompts.parquet")
    seconds = sum(table["seconds"].to_pylist()) / len(null.texts)
    return against_null(null, scores, found, lengths=lengths, null_lengths=null_lengths, seconds=seconds)


def _figures(
    given: StageInput,
    detectors: Sequence[Detector],
    scores: Mapping[str, Tensor],
    *,
    truth: list[bool] | None,
    lengths: Tensor,
) -> dict[str, Any]:
    """Return the cost of each detector and, if the truth is known, its ranking figures."""
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


def _combined(
    scores: dict[str, Tensor], truth: list[bool] | None, texts: Sequence[str]
) -> tuple[Tensor | None, dict[str, Any] | None]:
    """Return out-of-fold log odds of all detectors together, and their figures or the reason for none."""
    if truth is None:
        return None, None
    labels = torch.tensor(truth)
    usable = {name: score for name, score in scores.items() if bool(torch.isfinite(score).all())}
    reason = reason_against(labels, texts) if len(usable) > 1 else "fewer than two detectors with finite scores"
    if reason is not None:
        return None, {"auroc": None, "interval": None, "reason": reason}
    odds, said = combine(usable, labels, texts)
    return odds, {**ranking_figures(odds, labels), **said}
