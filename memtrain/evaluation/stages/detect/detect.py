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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

import memtrain
from memtrain.detectors.base import Detector
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.denoiser_calls import prompt_lengths
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.stages.detect.combined import combine, reason_against
from memtrain.evaluation.stages.detect.ranking_figures import ranking_figures
from memtrain.evaluation.stages.detect.score_parts import ScoreParts, keep_earlier
from memtrain.evaluation.stages.prompts import PromptToScore, known_truth
from memtrain.evaluation.stages.provenance import provenance
from memtrain.evaluation.stages.shards import Shard
from memtrain.models.fingerprint import fingerprint
from memtrain.records import write_json, write_parquet

SCHEMA_VERSION = 2
"""Of `detection.json` and `prompts.parquet`."""
WHOLE = Shard()
"""All prompts in one process."""


def detect(
    pipeline: DiffusionPipeline,
    prompts: Sequence[PromptToScore],
    *,
    detectors: Sequence[Detector],
    output: str | Path,
    seeds: Sequence[int] = (0, 1, 2, 3),
    steps: int = 50,
    guidance_scale: float = 7.5,
    batch_size: int = 8,
    model: str = "",
    shard: Shard | None = WHOLE,
    part_seconds: float = 30.0,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Score prompts and write the results.

    Args:
        pipeline: one of memtrain.models.stock_pipeline.
        prompts: P prompts.
        detectors: each gives one score per prompt.
        output: folder to write to; what an earlier call with the same settings scored is not scored again.
        seeds: K seeds; each prompt is sampled with every one, as far as the detectors need.
        steps: sampling steps.
        guidance_scale: of classifier-free guidance.
        batch_size: images sampled at once.
        model: where the pipeline comes from; stored as it is.
        shard: the part of the prompts to score, where several processes share an output folder; None to score
            nothing and merge what they wrote.
        part_seconds: scores are written at least this often; what a killed process loses.
        progress: show a progress bar over prompts.

    Returns:
        The content of `detection.json`; None if other processes have not scored their parts yet. Whoever is last
        merges.

    Raises:
        ConfigurationError: if settings contradict each other.
        RecordError: if there is nothing to score and scores are missing.
    """
    if not prompts or not seeds or not detectors or batch_size < 1:
        raise ConfigurationError(
            f"Nothing to score: {len(prompts)} prompts, {len(seeds)} seeds, {len(detectors)} detectors, "
            f"batch_size={batch_size}",
            expected="at least one of each",
            remedy="change the settings",
        )
    texts = [prompt.text for prompt in prompts]
    sampling = {"seeds": list(seeds), "steps": steps, "guidance_scale": guidance_scale, "batch_size": batch_size}
    identity = {
        "pipeline": fingerprint(pipeline),
        "prompts": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "detectors": [_configuration(detector) for detector in detectors],
        "sampling": sampling,
        "memtrain": memtrain.__version__,
    }
    folder = Path(output)
    parts = ScoreParts(folder / "detection", identity, detectors=[detector.name for detector in detectors])
    if shard is not None:
        _score(
            pipeline,
            texts,
            detectors,
            parts=parts,
            shard=shard,
            part_seconds=part_seconds,
            progress=progress,
            seeds=seeds,
            steps=steps,
            guidance_scale=guidance_scale,
            batch_size=batch_size,
        )
        if len(parts.done()) < len(texts):
            return None
    table = parts.merged(len(texts))
    keep_earlier(folder, key=parts.key, names=("detection.json", "prompts.parquet"))
    lengths, uncut = prompt_lengths(pipeline, texts), prompt_lengths(pipeline, texts, truncation=False)
    truth = known_truth(prompts)
    scores = {detector.name: torch.tensor(table[detector.name].to_pylist()).double() for detector in detectors}
    figures: dict[str, Any] = {}
    for detector in detectors:
        figures[detector.name] = {
            "higher_means_memorized": detector.higher_means_memorized,
            "cost": detector.cost,
            "denoiser_calls": len(seeds) * (detector.calls(steps) + detector.extra_forwards(steps)),
        }
        if truth is not None:
            oriented = scores[detector.name] * (1 if detector.higher_means_memorized else -1)
            figures[detector.name] |= ranking_figures(oriented, torch.tensor(truth), lengths=lengths, keys=texts)
    combined, together = _combined(scores, truth, texts)
    results = {
        "schema_version": SCHEMA_VERSION,
        **provenance(),
        "key": parts.key,
        "identity": identity,
        "model": model,
        "sampling": sampling,
        "prompts": len(prompts),
        "truncated_prompts": int((uncut > lengths).sum()),
        "seconds_per_prompt": sum(table["seconds"].to_pylist()) / len(prompts),
        "prompt_length": None if truth is None else ranking_figures(lengths.double(), torch.tensor(truth)),
        "detectors": figures,
        "combined": together,
    }
    columns = {
        "prompt": texts,
        "memorized": pa.array([prompt.memorized for prompt in prompts], pa.bool_()),
        "prompt_length": lengths.tolist(),
        **{detector.name: table[detector.name] for detector in detectors},
        **({} if combined is None else {"combined": combined.tolist()}),
    }
    write_parquet(pa.table(columns), folder / "prompts.parquet")
    write_json(results, folder / "detection.json")
    return results


def _configuration(detector: Detector) -> dict[str, str]:
    """What tells two detectors apart."""
    kind = type(detector)
    settings = {name: repr(value) for name, value in sorted(vars(detector).items())}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "name": detector.name, **settings}


def _score(
    pipeline: DiffusionPipeline,
    texts: Sequence[str],
    detectors: Sequence[Detector],
    *,
    parts: ScoreParts,
    shard: Shard,
    part_seconds: float,
    progress: bool,
    seeds: Sequence[int],
    batch_size: int,
    **sampling: Any,
) -> None:
    """Score this process's prompts that have no scores yet."""
    each = max(1, batch_size // len(seeds))
    groups = [range(start, min(start + each, len(texts))) for start in range(0, len(texts), each)]
    done = parts.done()
    own = groups[shard.index :: shard.count]
    left = [group for group in own if not done.issuperset(group)]
    total, scored = sum(map(len, own)), sum(map(len, own)) - sum(map(len, left))
    rows: list[dict[str, Any]] = []
    written = time.perf_counter()
    description = "scoring" if shard.count == 1 else f"scoring, part {shard}"
    with tqdm(total=total, initial=scored, desc=description, unit="prompt", disable=not progress) as bar:
        try:
            for group in left:
                start = time.perf_counter()
                readings = read_prompts_with(
                    pipeline,
                    [texts[row] for row in group],
                    detectors,
                    seeds=seeds,
                    batch_size=batch_size,
                    progress=False,
                    **sampling,
                )
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
    scores: dict[str, torch.Tensor], truth: list[bool] | None, texts: Sequence[str]
) -> tuple[torch.Tensor | None, dict[str, Any] | None]:
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
