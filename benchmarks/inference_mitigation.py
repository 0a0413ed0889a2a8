"""MemAttn's mitigation while sampling, on models that memorized: what it stops, and what it costs.

    python benchmarks/inference_mitigation.py --runs "[runs/mitigations/baseline-seed0]"

Runs are those of `benchmarks/mitigations.py`, or any others with planted images. The run's planted captions and some
held-out ones are sampled without the mitigation and with each of its settings, on the same noise, batch by batch in
turn. Measured is what the stage `mitigate` measures, pooled over runs; each run has its own threshold. With `--json`,
figures are added to the file as soon as a run is measured, and what is in there is not measured again.
"""

from __future__ import annotations

import json as text
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from memtrain.cli.chatter import quiet
from memtrain.cli.run_folder import known_prompts, pipeline_folder, run_data
from memtrain.evaluation.measures.fidelity import retrieved
from memtrain.evaluation.measures.pixels import diversity, pixel_distance
from memtrain.evaluation.measures.replication import replication, reproduction_threshold
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.mitigate.changes import Measured, summarize
from memtrain.evaluation.stages.mitigate.sheet import write_sheet
from memtrain.functional.ranking import mean_with_interval
from memtrain.inference.attention_masking import AttentionMasking

PLAIN = "without"
"""The condition that others are compared with."""
SETTINGS = {
    "mask alone": AttentionMasking(c1=1.0),
    "mask, c1 = 1.25": AttentionMasking(c1=1.25),
    "mask, c1 = 2": AttentionMasking(c1=2.0),
    "mask with EOS, c1 = 1.25": AttentionMasking(c1=1.25, hide_eos=True),
}
"""Condition -> what is measured."""
SEEDS, STEPS, GUIDANCE = (0, 1, 2, 3), 20, 4.0
FIDELITY = {"others": 4, "timesteps": 4}

console = Console(width=200, soft_wrap=True)


def measure(run: Path, *, heldout: int, picture: Path | None, pictured: str) -> dict[str, Any]:
    """Every condition on one run.

    Args:
        run: folder of a run.
        heldout: held-out captions.
        picture: PNG to write, None for none.
        pictured: the condition shown there.

    Returns:
        `memorized` per prompt, and per condition the ratio in thresholds, diversity, fidelity, distance to the
        unmitigated image and seconds of each batch.
    """
    _, data = run_data(run)
    prompts, own = known_prompts(data, most=1000)
    most = sum(prompt.memorized is True for prompt in prompts) + heldout
    prompts, own = prompts[:most], own[:most]
    texts = [prompt.text for prompt in prompts]
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder(run), safety_checker=None)
    images, seconds = sample(pipeline, texts, size=(int(own.shape[-2]), int(own.shape[-1])))
    if picture is not None:
        write_sheet(picture, prompts, without=images[PLAIN], mitigated=images[pictured], own_images=own)
    rest = torch.tensor([prompt.memorized is False for prompt in prompts])
    ratios = {name: ratio(found, own) for name, found in images.items()}
    rate = 1 / (int(rest.sum()) + 1)
    threshold = reproduction_threshold(ratios[PLAIN][rest].amin(dim=1), rate)
    conditions = {}
    for name, found in images.items():
        spread = diversity(found)
        assert spread is not None
        conditions[name] = {
            "ratio": (ratios[name] / threshold).tolist(),
            "diversity": spread.tolist(),
            "fidelity": retrieved(pipeline, found, texts, **FIDELITY).int().tolist(),
            "moved": pixel_distance(found, images[PLAIN]).tolist(),
            "seconds": seconds[name],
        }
    known = [prompt.memorized for prompt in prompts]
    return {"memorized": known, "threshold": threshold, "false_positive_rate": rate, "conditions": conditions}


def sample(
    pipeline: StableDiffusionPipeline, texts: list[str], *, size: tuple[int, int], together: int = 8
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Per condition the images `(P, K, 3, H, W)`, and the seconds of each batch of `together` prompts."""
    mitigations = {PLAIN: None, **SETTINGS}
    images: dict[str, list[Tensor]] = {name: [] for name in mitigations}
    seconds: dict[str, list[float]] = {name: [] for name in mitigations}
    sampling = Sampling(
        seeds=SEEDS,
        steps=STEPS,
        guidance_scale=GUIDANCE,
        size=size,
        batch_size=together * len(SEEDS),
        progress=False,
    )
    # A short call first, because the first one of a process is slow.
    generate(pipeline, texts[:1], sampling=replace(sampling, steps=2))
    for start in range(0, len(texts), together):
        part = texts[start : start + together]
        for name, mitigation in mitigations.items():
            begin = time.perf_counter()
            with nullcontext() if mitigation is None else mitigation(pipeline):
                found = generate(pipeline, part, sampling=sampling).images
            seconds[name].append(time.perf_counter() - begin)
            images[name].append(found)
        console.print(f"{start + len(part)} of {len(texts)} prompts sampled")
    return {name: torch.cat(found) for name, found in images.items()}, seconds


def ratio(images: Tensor, own: Tensor) -> Tensor:
    """`(P, K)` distance to the own image over that to the images of the other prompts."""
    position = torch.arange(len(own))
    return replication(images, own, training=own, own_index=position).ratio


def pooled(runs: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Figures of one condition over all runs, and the ratio of its batches' seconds to those without."""

    def together(condition: str, field: str) -> Tensor:
        return torch.tensor([row for run in runs for row in run["conditions"][condition][field]])

    without, mitigated = (
        Measured(together(key, "ratio"), together(key, "diversity"), together(key, "fidelity").double())
        for key in (PLAIN, name)
    )
    known = [truth for run in runs for truth in run["memorized"]]
    groups = summarize(
        known, without=without, mitigated=mitigated, moved=together(name, "moved"), threshold=1.0, seed=0
    )
    seconds = together(name, "seconds") / together(PLAIN, "seconds")
    return {"groups": groups, "time": mean_with_interval(seconds.log())}


def table(runs: list[dict[str, Any]]) -> Table:
    """A row per condition."""
    screen = Table(title=f"{len(runs)} runs", title_justify="left")
    columns = ("planted reproduced", "planted diversity", "planted moved", "held-out reproduced", "held-out diversity")
    for title in ("while sampling", *columns, "held-out moved", "held-out fidelity", "change", "time"):
        screen.add_column(title)
    for name in [PLAIN, *SETTINGS]:
        found = pooled(runs, name)
        planted, other = found["groups"]["memorized"], found["groups"]["other"]
        screen.add_row(
            name,
            share(planted["with"]["reproduced"]),
            number(planted["with"]["diversity"]),
            "" if name == PLAIN else number(planted["distance_to_unmitigated"]),
            share(other["with"]["reproduced"]),
            number(other["with"]["diversity"]),
            "" if name == PLAIN else number(other["distance_to_unmitigated"]),
            number(other["with"]["fidelity"]),
            "" if name == PLAIN else number(other["change"]["fidelity"]),
            "" if name == PLAIN else number({k: exponential(v) for k, v in found["time"].items()}),
        )
    return screen


def exponential(value: Any) -> Any:
    """Return the change of a number, or of both ends of an interval."""
    return torch.tensor(value).exp().tolist()


def share(found: dict[str, Any]) -> str:
    """`9 of 10 (60% to 98%)`."""
    low, high = found["interval"]
    return f"{found['k']} of {found['n']} ({low:.0%} to {high:.0%})"


def number(found: dict[str, Any]) -> str:
    """`0.012 (0.010 to 0.013)`; of a single prompt there is no interval."""
    ends = "" if found["interval"] is None else " ({:.3f} to {:.3f})".format(*found["interval"])
    return f"{found['mean']:.3f}{ends}"


def main(
    runs: list[str],
    *,
    json: str | None = None,
    heldout: int = 20,
    picture: str | None = None,
    pictured: str = "mask, c1 = 1.25",
    threads: int = 1,
) -> None:
    """Measure what is missing, and show what there is.

    Args:
        runs: folders of finished runs with planted images.
        json: file of the figures, which is read first.
        heldout: held-out captions per run.
        picture: PNG of the first run that is measured, with its own images, without and with the mitigation.
        pictured: the setting shown there.
        threads: the number of threads of the computation.
    """
    quiet()
    torch.set_num_threads(threads)
    store = Path(json) if json else None
    kept: dict[str, Any] = text.loads(store.read_text(encoding="utf-8")) if store and store.is_file() else {}
    for run in runs:
        if Path(run).name in kept:
            continue
        console.print(run, markup=False)
        drawn = Path(picture) if picture else None
        kept[Path(run).name] = measure(Path(run), heldout=heldout, picture=drawn, pictured=pictured)
        picture = None
        if store:
            store.write_text(text.dumps(kept) + "\n", encoding="utf-8")
    console.print(table([kept[Path(run).name] for run in runs]))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
