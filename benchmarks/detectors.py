"""Every detector on models that memorized: how well it tells planted from held-out captions, and what it costs.

    python benchmarks/detectors.py --runs "[runs/a, runs/b]" --json benchmarks/detectors.json

The runs are finished training runs with planted duplicates, such as those of `benchmarks/mitigations.py`. All detectors
read one sampling of the captions, planted and held out, so they see the same noise. AUROC and the true-positive rate at
a false-positive rate of at most 1 % are measured on each run. A forward is a run of the denoiser on one image, both
halves of guidance; a Jacobian-vector product counts as two. Seconds per prompt are of each detector alone, on a few
captions of the first run, the median of rounds in which the detectors take turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from json import dumps
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import StableDiffusionPipeline
from jsonargparse import ArgumentParser, auto_cli
from lightning.pytorch import LightningDataModule

from memtrain.cli.chatter import quiet
from memtrain.detectors.anisotropy import Anisotropy
from memtrain.detectors.base import Detector
from memtrain.detectors.bright_ending import BrightEnding
from memtrain.detectors.denoising_confidence import DenoisingConfidence
from memtrain.detectors.edge_consistency import EdgeConsistency
from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.memattn import MemAttn
from memtrain.detectors.noise_similarity import NoiseSimilarity
from memtrain.detectors.sharpness import Sharpness
from memtrain.detectors.tile_l2 import TileL2
from memtrain.evaluation.sampling.denoiser_calls import prompt_lengths
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.functional.ranking import auroc, bootstrap_interval, true_positive_rate
from memtrain.records import PLANTED

DETECTORS: list[Detector] = [
    GuidanceNorm(),
    GuidanceNorm(5),
    GuidanceNorm(None),
    Sharpness(),
    Sharpness("finite_difference"),
    Anisotropy(),
    DenoisingConfidence(),
    DenoisingConfidence(published=True),
    NoiseSimilarity(),
    TileL2(),
    BrightEnding(),
    EdgeConsistency(),
    EdgeConsistency(published=True),
    MemAttn("E"),
    MemAttn("D"),
    MemAttn("D", published=True),
]
FALSE_POSITIVE_RATE = 0.01
LENGTH = "prompt length alone"


def captions(folder: Path, most: int | None) -> tuple[list[str], list[str]]:
    """The planted and the held-out captions of a run; of the latter at most `most`."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    data = parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    data.build()
    planted = [row.caption for row in data.train_dataset.samples if data.groups[row.key] == PLANTED]
    return list(dict.fromkeys(planted)), [row.caption for row in data.heldout_dataset.samples][:most]


def figures(score: torch.Tensor, truth: torch.Tensor) -> dict[str, Any]:
    """Return the figures of one score, which is higher for memorized prompts."""
    return {
        "auroc": float(auroc(score, truth)),
        "interval": list(bootstrap_interval(auroc, score, truth, seed=0)),
        "true_positive_rate": float(true_positive_rate(score, truth, false_positive_rate=FALSE_POSITIVE_RATE)),
    }


def measure(
    runs: list[str],
    json: str | None = None,
    *,
    images_per_prompt: int = 4,
    steps: int = 20,
    guidance_scale: float = 4.0,
    batch_size: int = 16,
    most_heldout: int | None = None,
    timing_prompts: int = 4,
    rounds: int = 3,
) -> dict[str, Any]:
    """Measure, print a table and write the figures.

    Args:
        runs: folders of finished runs.
        json: where to write the figures.
        images_per_prompt: images sampled of each caption.
        steps: sampling steps.
        guidance_scale: the scale of classifier-free guidance.
        batch_size: images sampled at once.
        most_heldout: held-out captions at most; default all.
        timing_prompts: captions that each detector alone is timed on.
        rounds: times that each is timed.
    """
    quiet()
    sampling = Sampling(
        seeds=range(images_per_prompt),
        steps=steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        progress=False,
    )
    sizes: list[tuple[int, int]] = []
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in [*(d.name for d in DETECTORS), LENGTH]}
    seconds: dict[str, float] = {}
    for run in runs:
        pipeline = StableDiffusionPipeline.from_pretrained(Path(run) / "pipeline", safety_checker=None)
        planted, heldout = captions(Path(run), most_heldout)
        texts, truth = planted + heldout, torch.tensor([True] * len(planted) + [False] * len(heldout))
        if not seconds:
            seconds = timed(pipeline, texts[:timing_prompts], sampling, rounds=rounds)
        sizes.append((len(planted), len(heldout)))
        readings = read_prompts_with(pipeline, texts, DETECTORS, sampling=sampling)
        for detector in DETECTORS:
            score = detector.score(readings[detector.name])
            found[detector.name].append(figures(score if detector.higher_means_memorized else -score, truth))
        found[LENGTH].append(figures(prompt_lengths(pipeline, texts).float(), truth))
        print(f"{run}: {len(planted)} planted and {len(heldout)} held-out captions", file=sys.stderr)
    cost = {
        detector.name: {
            "forwards_per_prompt": images_per_prompt * (detector.calls(steps) + detector.extra_forwards(steps)),
            "seconds_per_prompt": seconds[detector.name],
        }
        for detector in DETECTORS
    }
    results = {
        "sampling": {**sampling.said(), "seeds": images_per_prompt, "batch_size": batch_size},
        "captions": sizes,
        "detectors": {name: {"runs": each, **cost.get(name, {})} for name, each in found.items()},
    }
    print_table(results)
    if json is not None:
        Path(json).write_text(dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def timed(pipeline: StableDiffusionPipeline, texts: list[str], sampling: Sampling, *, rounds: int) -> dict[str, float]:
    """Seconds per prompt of each detector alone; one round before counts for nothing."""
    taken: dict[str, list[float]] = {detector.name: [] for detector in DETECTORS}
    for _ in range(rounds + 1):
        for detector in DETECTORS:
            start = time.perf_counter()
            detector.score(read_prompts_with(pipeline, texts, [detector], sampling=sampling)[detector.name])
            taken[detector.name].append((time.perf_counter() - start) / len(texts))
    return {name: statistics.median(each[1:]) for name, each in taken.items()}


def print_table(results: dict[str, Any]) -> None:
    """As Markdown."""
    print("| detector | AUROC | found at 1 % false positives | forwards per prompt | seconds per prompt |")
    print("|---|---|---|---|---|")
    for name, row in results["detectors"].items():
        areas = ", ".join(f"{run['auroc']:.3f}" for run in row["runs"])
        rates = ", ".join(f"{run['true_positive_rate']:.2f}" for run in row["runs"])
        cost = "0 | 0" if name == LENGTH else f"{row['forwards_per_prompt']} | {row['seconds_per_prompt']:.2f}"
        print(f"| {name} | {areas} | {rates} | {cost} |")


if __name__ == "__main__":
    auto_cli(measure, as_positional=False)
