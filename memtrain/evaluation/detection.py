"""Which of these prompts does a model memorize? Scores prompts without images of their own, for any pipeline.

Written to the output folder: `prompts.parquet`, one row per prompt with its length and each detector's score, and
`detection.json` with figures, settings and versions. Where the file says which prompts are memorized, each detector's
AUROC is measured, beside that of the prompts' length alone: a score that length explains is no detection.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from diffusers import StableDiffusionPipeline
from rich.console import Console
from rich.table import Table

from memtrain.detectors.base import Detector
from memtrain.evaluation.denoiser_calls import prompt_lengths
from memtrain.evaluation.generate import read_prompts_with
from memtrain.evaluation.prompts import PromptToScore, known_truth
from memtrain.evaluation.provenance import provenance
from memtrain.functional.ranking import auroc, bootstrap_interval
from memtrain.records import write_parquet

SCHEMA_VERSION = 1
"""Of `detection.json` and `prompts.parquet`."""


def detect(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[PromptToScore],
    *,
    detectors: Sequence[Detector],
    output: str | Path,
    seeds: Sequence[int] = (0, 1, 2, 3),
    steps: int = 50,
    guidance_scale: float = 7.5,
    batch_size: int = 8,
    model: str = "",
    progress: bool = True,
) -> dict[str, Any]:
    """Score prompts and write the results.

    Args:
        pipeline: a Stable Diffusion 1.x or 2.x pipeline.
        prompts: P prompts.
        detectors: each gives one score per prompt.
        output: folder to write to.
        seeds: K seeds; each prompt is sampled with every one, as far as the detectors need.
        steps: sampling steps.
        guidance_scale: of classifier-free guidance.
        batch_size: images sampled at once.
        model: where the pipeline comes from; stored as it is.
        progress: show a progress bar.

    Returns:
        The content of `detection.json`.
    """
    texts = [prompt.text for prompt in prompts]
    lengths, uncut = prompt_lengths(pipeline, texts), prompt_lengths(pipeline, texts, truncation=False)
    start = time.perf_counter()
    readings = read_prompts_with(
        pipeline,
        texts,
        detectors,
        seeds=seeds,
        steps=steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    scores = {detector.name: detector.score(readings[detector.name]) for detector in detectors}
    truth = known_truth(prompts)
    figures: dict[str, Any] = {}
    for detector in detectors:
        figures[detector.name] = {
            "higher_means_memorized": detector.higher_means_memorized,
            "cost": detector.cost,
            "denoiser_calls": len(seeds) * detector.calls(steps),
        }
        if truth is not None:
            oriented = scores[detector.name] * (1 if detector.higher_means_memorized else -1)
            figures[detector.name] |= _ranking(oriented, torch.tensor(truth))
    results = {
        "schema_version": SCHEMA_VERSION,
        **provenance(),
        "model": model,
        "sampling": {"seeds": list(seeds), "steps": steps, "guidance_scale": guidance_scale},
        "prompts": len(prompts),
        "truncated_prompts": int((uncut > lengths).sum()),
        "seconds_per_prompt": seconds / len(prompts),
        "prompt_length": None if truth is None else _ranking(lengths.float(), torch.tensor(truth)),
        "detectors": figures,
    }
    columns = {
        "prompt": texts,
        "memorized": pa.array([prompt.memorized for prompt in prompts], pa.bool_()),
        "prompt_length": lengths.tolist(),
        **{name: score.tolist() for name, score in scores.items()},
    }
    folder = Path(output)
    write_parquet(pa.table(columns), folder / "prompts.parquet")
    (folder / "detection.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


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
