"""Which of these prompts does a model memorize? Scores prompts without images of their own, for any pipeline.

Written to the output folder: `prompts.parquet`, one row per prompt with its length and each detector's score, and
`detection.json` with figures, settings and versions. Where the file says which prompts are memorized, each detector's
AUROC is measured, beside that of the prompts' length alone: a score that length explains is no detection.

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
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

import memtrain
from memtrain.detectors.base import Detector
from memtrain.errors import ConfigurationError
from memtrain.evaluation.denoiser_calls import prompt_lengths
from memtrain.evaluation.generate import read_prompts_with
from memtrain.evaluation.prompts import PromptToScore, known_truth
from memtrain.evaluation.provenance import provenance
from memtrain.evaluation.score_parts import ScoreParts, keep_earlier
from memtrain.evaluation.shards import Shard
from memtrain.functional.ranking import auroc, bootstrap_interval
from memtrain.models.fingerprint import fingerprint
from memtrain.records import write_parquet

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
    figures: dict[str, Any] = {}
    for detector in detectors:
        figures[detector.name] = {
            "higher_means_memorized": detector.higher_means_memorized,
            "cost": detector.cost,
            "denoiser_calls": len(seeds) * detector.calls(steps),
        }
        if truth is not None:
            oriented = torch.tensor(table[detector.name].to_pylist()) * (1 if detector.higher_means_memorized else -1)
            figures[detector.name] |= _ranking(oriented, torch.tensor(truth))
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
        "prompt_length": None if truth is None else _ranking(lengths.float(), torch.tensor(truth)),
        "detectors": figures,
    }
    columns = {
        "prompt": texts,
        "memorized": pa.array([prompt.memorized for prompt in prompts], pa.bool_()),
        "prompt_length": lengths.tolist(),
        **{detector.name: table[detector.name] for detector in detectors},
    }
    write_parquet(pa.table(columns), folder / "prompts.parquet")
    (folder / "detection.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
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


def _ranking(score: torch.Tensor, truth: torch.Tensor) -> dict[str, Any]:
    low, high = bootstrap_interval(auroc, score, truth, seed=0, resamples=1000, level=0.95)
    return {"auroc": float(auroc(score, truth)), "interval": [low, high]}


def print_detection(
    results: dict[str, Any], table: pa.Table, folder: Path, *, most: int = 15, console: Console | None = None
) -> None:
    """Print the prompts with the highest first score, what is known about the detectors, and what it means.

    Args:
        results: content of `detection.json`.
        table: content of `prompts.parquet`.
        folder: where the files are.
        most: prompts shown.
        console: where to print; default the standard output.
    """
    console = console or Console()
    first = next(iter(results["detectors"]))
    direction = "descending" if results["detectors"][first]["higher_means_memorized"] else "ascending"
    screen = Table(title=f"Prompts by {first}, most suspicious first", title_justify="left")
    screen.add_column("prompt")
    for name in results["detectors"]:
        screen.add_column(name, justify="right")
    for row in table.sort_by([(first, direction)]).slice(0, most).to_pylist():
        screen.add_row(row["prompt"][:80], *(f"{row[name]:.4g}" for name in results["detectors"]))
    console.print(screen, markup=False)
    if results["prompt_length"] is not None:
        for name, figures in {**results["detectors"], "prompt length alone": results["prompt_length"]}.items():
            low, high = figures["interval"]
            console.print(f"AUROC of {name}: {figures['auroc']:.3f} (95 % interval {low:.3f} to {high:.3f})")
    else:
        console.print(
            "Scores are comparable within this table only: they depend on model, guidance and steps. A prompt stands "
            "out against prompts that the model cannot have memorized; add such prompts, with a column `memorized` "
            "(0 or 1), to have the detectors measured.",
            soft_wrap=True,
        )
    if results["truncated_prompts"]:
        console.print(f"{results['truncated_prompts']} prompt(s) are longer than the text encoder reads and were cut.")
    console.print(
        f"{results['prompts']} prompts, {results['seconds_per_prompt']:.2f} s each. Scores: "
        f"{folder / 'prompts.parquet'}   Figures: {folder / 'detection.json'}",
        markup=False,
        soft_wrap=True,
    )
