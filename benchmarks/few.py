"""Twelve pictures and nothing held out: does training stop before they are reproduced, and only then?

    python benchmarks/few.py --seeds "[0, 1, 2]" --json benchmarks/few.json

Three runs for each seed, which chooses the pictures among the embedded clip art. All train `configs/few.yaml`:

- `to the end`: nothing stops it;
- `stopped`: as it is;
- `too brief`: at a tenth of the learning rate, with as many looks at the pictures, so that nothing should be flagged.

Named with `--runs`, the same with adapters of rank 16 at four times the learning rate: `LoRA to the end`, `LoRA
stopped`, and `T-LoRA to the end`, of whose ranks 8 act at the noisiest timestep.

A picture counts as reproduced if the best of four generations for its caption is below 0.7 times the mean distance to
the fifty nearest images of the whole collection. As many captions of other images are asked for, to show what that
ratio is for a picture that was never seen. Figures are added to the JSON file run by run; what is in there is not run
again, and a run that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import json as text
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from experiment import ROOT, call
from jsonargparse import auto_cli
from rich.console import Console

from memtrain.data.images import to_pixel_values
from memtrain.data.source import SampleSource, open_source
from memtrain.evaluation.measures.replication import replication
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.functional.keyed_draws import hash_order
from memtrain.functional.pixels import to_uint8
from memtrain.models.pipeline import load_pipeline
from memtrain.records import written_whole

PICTURES, SIZE = 12, 64
REPRODUCED = 0.7
RUNS = ("to the end", "stopped", "too brief")
ADAPTERS: dict[str, dict[str, Any]] = {"LoRA ": {"rank": 16}, "T-LoRA ": {"rank": 16, "timestep_rank": {"minimum": 8}}}
STOP = "memtrain.callbacks.stop_before_memorization.StopBeforeMemorization"
console = Console(width=160, soft_wrap=True)


def chosen(source: SampleSource, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the pictures that are trained on, and of as many others."""
    order = sorted(range(len(source)), key=lambda index: hash_order(source.samples[index].key, f"few {seed}"))
    return order[:PICTURES], order[PICTURES : 2 * PICTURES]


def write_pictures(source: SampleSource, indices: Sequence[int], folder: Path) -> Path:
    """A folder of images with their captions, as a user has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in indices:
        name = source.samples[index].key.replace("/", "_") + ".png"
        source.load_image(index).save(folder / name)
        lines.append(text.dumps({"file_name": name, "text": source.samples[index].caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def configuration(run: str, *, data: Path, seed: int, steps: int | None = None) -> dict[str, Any]:
    """The configuration of a run."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "few.yaml").read_text(encoding="utf-8"))
    content["seed_everything"] = seed
    content["data"]["init_args"]["path"] = str(data.resolve())
    content["trainer"]["enable_progress_bar"] = False
    content["trainer"]["enable_model_summary"] = False
    if steps is not None:
        content["trainer"]["max_steps"] = steps
    for prefix, options in ADAPTERS.items():
        if run.startswith(prefix):
            run = run.removeprefix(prefix)
            content["model"]["init_args"]["lora"] = options
            content["model"]["init_args"]["learning_rate"] *= 4
    if run == "to the end":
        (stop,) = (one for one in content["trainer"]["callbacks"] if one["class_path"] == STOP)
        stop["init_args"]["share"] = 1.0
    if run == "too brief":
        content["model"]["init_args"]["learning_rate"] /= 10
        content["trainer"]["max_steps"] = min(120, content["trainer"]["max_steps"])
    return content


def trained(place: Path, content: dict[str, Any]) -> Path:
    """The pipeline of a run, trained unless it is there."""
    if not (place / "pipeline" / "model_index.json").is_file():
        place.mkdir(parents=True, exist_ok=True)
        path = place.parent / f"{place.name}.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        where = ["--trainer.default_root_dir", str(place), "--ckpt_path", "last"]
        call(["train.py", "fit", "--config", str(path), *where], log=place.parent / f"{place.name}.log", threads=1)
    return place / "pipeline"


def figures(
    place: Path, source: SampleSource, seed: int, *, images: torch.Tensor, sampling: Sampling
) -> dict[str, Any]:
    """Return the flagged pictures of a run and the pictures that its model reproduces."""
    own, others = chosen(source, seed)
    pipeline = load_pipeline(str(place / "pipeline"))
    ratios = {}
    for name, indices in (("trained", own), ("others", others)):
        made = generate(pipeline, [source.samples[index].caption for index in indices], sampling=sampling).images
        found = replication(made, images[indices], training=images, own_index=torch.tensor(indices))
        ratios[name] = sorted(round(ratio, 3) for ratio in found.best.tolist())
    calibration = text.loads((place / "records" / "calibration.json").read_text(encoding="utf-8"))
    state = torch.load(place / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
    (stop,) = (value for name, value in state["callbacks"].items() if name.startswith("StopBeforeMemorization"))
    return {
        "flagged": calibration["flagged"],
        "first_flagged_step": calibration["first_flagged_step"],
        "parting_step": calibration["parting_step"],
        "loss_change": {name: calibration["curve"][-1][name] for name in ("training", "heldout")},
        "stopped": stop["stopped"],
        "weights_of_step": stop["restored"],
        "reproduced": sum(ratio < REPRODUCED for ratio in ratios["trained"]),
        "others_below": sum(ratio < REPRODUCED for ratio in ratios["others"]),
        "ratios": ratios,
    }


def show(results: dict[str, dict[str, Any]]) -> None:
    """One line for each run."""
    for name, found in sorted(results.items(), key=lambda one: (one[0].split(", ")[1], one[0])):
        stopped = ""
        if found["stopped"] is not None:
            stopped = f", stopped at step {found['stopped']} with the weights of step {found['weights_of_step']}"
        lowest, *_, highest = found["ratios"]["trained"]
        console.print(
            f"{name}: reproduced {found['reproduced']} of {PICTURES} (others {found['others_below']}), flagged "
            f"{found['flagged']}, first at step {found['first_flagged_step']}{stopped}, ratios {lowest:.2f} to "
            f"{highest:.2f}",
            markup=False,
        )


def main(
    seeds: list[int] | None = None,
    json: str | None = None,
    folder: str = "runs/benchmark_few",
    runs: list[str] | None = None,
    steps: int | None = None,
) -> None:
    """Train, judge and show.

    Args:
        seeds: the seeds of the choice of pictures and of training; default none, which shows what the file has.
        json: file of the figures.
        folder: the folder of the runs.
        runs: which; default the three without adapters.
        steps: the number of steps of a run, instead of those of the configuration, to try the script.
    """
    path = None if json is None else Path(json)
    results = text.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
    source = open_source(str(ROOT / "assets" / "clipart-pd.tar"))
    images = to_uint8(torch.stack([to_pixel_values(source.load_image(i), SIZE) for i in range(len(source))]))
    for seed in seeds or []:
        data = write_pictures(source, chosen(source, seed)[0], Path(folder) / f"pictures-{seed}")
        for run in runs or RUNS:
            name = f"seed {seed}, {run}"
            if name in results:
                continue
            place = Path(folder) / f"{run.replace(' ', '_')}-{seed}"
            trained(place, configuration(run, data=data, seed=seed, steps=steps))
            sampling = Sampling(batch_size=48, progress=False)
            results[name] = figures(place, source, seed, images=images, sampling=sampling)
            show({name: results[name]})
            if path is not None:
                with written_whole(path) as unfinished:
                    unfinished.write_text(text.dumps(results, indent=1) + "\n", encoding="utf-8")
    show(results)


if __name__ == "__main__":
    auto_cli(main)
