"""Training steps of `train.py` against diffusers' own scripts: samples a second and peak memory, in turn.

    python benchmarks/training.py --scripts diffusers/examples/text_to_image --json benchmarks/training.json

`--scripts` is that folder of a checkout of diffusers at the installed release; it needs `datasets` and `torchvision`
beside memtrain. Each way is a whole command on the same pipeline, images, batch and precision. The ways take turns,
round after round, and are compared within each round. `--profile` says where a
step's time goes, by Lightning's profiler.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from json import dumps, loads
from pathlib import Path
from typing import Any

import torch
import yaml
from experiment import ROOT, TAIL, CommandError
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from training_shapes import Shape, shape_of

WARMUP = 16
"""Steps of each run that are not counted: in the first ones held-out samples are measured more often."""
SCRIPT = "diffusers' script"
WAYS = ("watched", "cached", "unwatched, cached")
"""Ways of train.py: with the monitor, the same with latents and text on disk, and with the caches but without the
monitor."""


@dataclass(frozen=True)
class Run:
    """The result of a command.

    Attributes:
        seconds: the seconds of each step after the warm-up.
        before: seconds from the start of the process to the first step.
        memory: MiB of the process at most; of the GPU, where there is one.
    """

    seconds: list[float]
    before: float
    memory: float

    @property
    def mean(self) -> float:
        """Mean seconds of a step, with what happens every few steps."""
        return statistics.fmean(self.seconds)


def timed(command: Sequence[str], folder: Path, *, paths: Sequence[str] = ()) -> Run:
    """Run a training script with a clock.

    Args:
        command: script and arguments.
        folder: the folder for its figures, log and the caches of other libraries.
        paths: further folders with packages.

    Raises:
        CommandError: if it fails, or stops before the warm-up is over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures, log = folder / "figures.json", folder / "log"
    figures.unlink(missing_ok=True)
    own = [str(ROOT), *paths, os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in own if path),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }
    child = [sys.executable, str(ROOT / "benchmarks" / "training_child.py"), str(figures), *command]
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(  # noqa: S603
            child, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    found = loads(figures.read_text(encoding="utf-8")) if figures.is_file() else {"steps": []}
    steps = found["steps"]
    if done.returncode or len(steps) < WARMUP + 2:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])
        raise CommandError(f"{command[0]} ended with {done.returncode} after {len(steps)} step(s)\n{tail}")
    seconds = [later - earlier for earlier, later in zip(steps[WARMUP:], steps[WARMUP + 1 :], strict=False)]
    memory = found["peak_gpu_gib"] * 1024 if "peak_gpu_gib" in found else found["peak_rss_mib"]
    return Run(seconds, steps[0], memory)


def script_command(shape: Shape, form: str, *, scripts: Path, steps: int, output: Path) -> list[str]:
    """The command of diffusers' script.

    Args:
        shape: model, images, batch and precision.
        form: `full` or `lora`.
        scripts: folder of diffusers' text-to-image examples.
        steps: the number of steps of training.
        output: folder that it writes to.
    """
    options = {
        "pretrained_model_name_or_path": shape.pipeline,
        "train_data_dir": shape.images,
        "cache_dir": output / "datasets",
        "caption_column": "text",
        "resolution": shape.resolution,
        "train_batch_size": shape.batch,
        "max_train_steps": steps,
        "learning_rate": "1e-4",
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "mixed_precision": "bf16" if shape.half else "no",
        "seed": 0,
        "output_dir": output,
        "report_to": "all",
        "checkpointing_steps": 100_000,
        "dataloader_num_workers": shape.workers,
        **({"rank": 16} if form == "lora" else {}),
    }
    flags = ["--center_crop"] + ["--gradient_checkpointing"] * shape.checkpointing
    flags += ["--use_ema"] * (form == "full" and not shape.xl)
    name = "train_text_to_image" + "_lora" * (form == "lora") + "_sdxl" * shape.xl
    words = (word for key, value in options.items() for word in (f"--{key}", str(value)))
    return [str(scripts / f"{name}.py"), *words, *flags]


def own_command(shape: Shape, form: str, way: str, *, steps: int, folder: Path, profile: bool = False) -> list[str]:
    """The command of `train.py`, whose configuration is written to `folder`; see :func:`script_command`."""
    watched, cached = not way.startswith("unwatched"), way.endswith("cached")
    monitor = {
        "class_path": "memtrain.callbacks.monitor.MemorizationMonitor",
        "init_args": {"reference": shape.reference, "reference_folder": str(folder.parent / "profiles")},
    }
    model: dict[str, Any] = {
        "pretrained": str(shape.pipeline),
        "learning_rate": 1e-4,
        "ema_decay": 0.999 if form == "full" and not shape.xl else None,
        "execution": {"gradient_checkpointing": shape.checkpointing},
    }
    if form == "lora":
        model["lora"] = {"rank": 16}
    if not shape.half:
        # Which Lightning refuses beside mixed precision and clipped gradients.
        model["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"fused": True}}
    else:
        # As the scripts do with what they do not train.
        model["execution"]["frozen_dtype"] = "bfloat16"
    data: dict[str, Any] = {
        "path": str(shape.images),
        "heldout_fraction": 0.1 if watched else 0.0,
        "resolution": shape.resolution,
        "batch_size": shape.batch,
        "num_workers": shape.workers,
        "scan": {"folder": str(folder.parent / "families")},
    }
    if cached:
        data["cache"] = {"folder": str(folder.parent / f"cache-{form}"), "latents": True, "text": True}
    content = {
        "seed_everything": 0,
        "trainer": {
            "default_root_dir": str(folder / "run"),
            "max_steps": steps,
            "limit_val_batches": 0,
            "precision": "bf16-mixed" if shape.half else "32-true",
            "gradient_clip_val": 1.0,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "callbacks": [monitor] if watched else [],
            **(
                {
                    "profiler": {
                        "class_path": "lightning.pytorch.profilers.SimpleProfiler",
                        "init_args": {"dirpath": str(folder), "filename": "profile"},
                    }
                }
                if profile
                else {}
            ),
        },
        "model": {"class_path": "memtrain.training.text_to_image.TextToImageModule", "init_args": model},
        "data": {"class_path": "memtrain.data.module.TextImageDataModule", "init_args": data},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return [str(ROOT / "train.py"), "fit", "--config", str(folder / "config.yaml")]


def compare(
    shape: Shape,
    form: str,
    *,
    scripts: Path,
    steps: int,
    rounds: int,
    folder: Path,
    paths: Sequence[str],
    ways: Sequence[str] = WAYS,
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Run all ways of one form in turn; see :func:`benchmark`.

    Args:
        shape: model, images, batch and precision.
        form: `full` or `lora`.
        scripts: folder of diffusers' text-to-image examples.
        steps: the number of steps of each run.
        rounds: how often each way is run.
        folder: the folder to work in.
        paths: folders with further packages.
        ways: the ways of `train.py`.
        keep: is given the figures after each run, in case that a later one fails.

    Returns:
        For each way seconds a step, memory, and for ours the ratios to the script, with their range over the rounds.
    """
    runs: dict[str, list[Run]] = {name: [] for name in (SCRIPT, *ways)}
    for number in range(rounds):
        for name in runs:
            place = folder / f"{form}-{re.sub('[^a-z]+', '-', name)}"
            if name == SCRIPT:
                command = script_command(shape, form, scripts=scripts, steps=steps, output=place / "out")
            else:
                command = own_command(shape, form, name, steps=steps, folder=place)
            runs[name].append(timed(command, place, paths=paths))
            print(f"{form}, round {number + 1} of {rounds}, {name}: {runs[name][-1].mean:.4f} s a step", flush=True)
            keep(compared(shape, runs))
    return compared(shape, runs)


def compared(shape: Shape, runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Figures of each way that was run, and ratios within the rounds; the script is the first."""
    theirs, found = runs[SCRIPT], {}
    for name, own in runs.items():
        if not own:
            continue
        speed = [a.mean / b.mean for a, b in zip(theirs, own, strict=False)]
        seconds = statistics.median([run.mean for run in own])
        found[name] = {
            "seconds_per_step": seconds,
            "samples_per_second": shape.batch / seconds,
            "speed_ratio": statistics.median(speed),
            "speed_ratio_range": [min(speed), max(speed)],
            "memory_mib": statistics.median([run.memory for run in own]),
            "memory_ratio": statistics.median([b.memory / a.memory for a, b in zip(theirs, own, strict=False)]),
            "seconds_before_first_step": statistics.median([run.before for run in own]),
            "rounds": len(own),
        }
    return found


def profiled(shape: Shape, form: str, *, steps: int, folder: Path, rows: int = 12) -> list[dict[str, Any]]:
    """Where the time of watched steps without caches goes: the entries of Lightning's profiler that take most.

    Args:
        shape: model, images, batch and precision.
        form: `full` or `lora`.
        steps: the number of steps of training.
        folder: the folder to write to.
        rows: entries.
    """
    place = folder / f"{form}-profile"
    timed(own_command(shape, form, "watched", steps=steps, folder=place, profile=True), place)
    (report,) = place.glob("*profile*.txt")
    entries = []
    for line in report.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[2].isdigit():
            calls, seconds = int(cells[2]), float(cells[3])
            if calls >= steps // 2:
                entries.append({"entry": cells[0], "calls": calls, "seconds_per_step": seconds / steps})
    return sorted(entries, key=lambda entry: -entry["seconds_per_step"])[:rows]


def show(console: Console, title: str, found: dict[str, Any]) -> None:
    """Print one comparison."""
    table = Table(
        "way", "s a step", "samples/s", "speed against the script", "MiB at most", "memory ratio", title=title
    )
    for name, row in found.items():
        low, high = row["speed_ratio_range"]
        table.add_row(
            name,
            f"{row['seconds_per_step']:.4f}",
            f"{row['samples_per_second']:.2f}",
            f"{row['speed_ratio']:.2f} ({low:.2f} to {high:.2f})",
            f"{row['memory_mib']:.0f}",
            f"{row['memory_ratio']:.2f}",
        )
    console.print(table)


def benchmark(
    scripts: str | None = None,
    *,
    shape: str = "tiny",
    forms: Sequence[str] = ("full", "lora"),
    steps: int = 80,
    rounds: int = 4,
    profile: bool = False,
    packages: str | None = None,
    folder: str | None = None,
    json: str | None = None,
) -> None:
    """Time them.

    Args:
        scripts: folder of diffusers' text-to-image examples; without it only `--profile` works.
        shape: `tiny` (assets/tiny-sd on 64-pixel clip art), or `sd15`, `sdxl` with random weights, on a GPU.
        forms: `full`, `lora`.
        steps: the number of steps of each run, the first 16 of which are not counted.
        rounds: how often each way is run.
        profile: show where a step's time goes.
        packages: a folder with further packages that the scripts need.
        folder: the folder to work in; default a temporary one.
        json: file for the figures.
    """
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(folder or temporary).resolve()
        chosen = shape_of(shape, work)
        found: dict[str, Any] = {"shape": shape, "batch": chosen.batch, "torch": torch.__version__, "steps": steps}
        for form in forms:
            if scripts is not None:
                found[form] = compare(
                    chosen,
                    form,
                    scripts=Path(scripts).resolve(),
                    steps=steps,
                    rounds=rounds,
                    folder=work,
                    paths=[packages] if packages else [],
                )
                show(console, f"{shape}, {form}, batches of {chosen.batch}", found[form])
            if profile:
                found[f"{form}_profile"] = profiled(chosen, form, steps=steps, folder=work)
                table = Table("entry", "ms a step", title=f"{shape}, {form}: where the time of a watched step goes")
                for entry in found[f"{form}_profile"]:
                    table.add_row(entry["entry"], f"{1000 * entry['seconds_per_step']:.1f}")
                console.print(table)
        if json is not None:
            Path(json).write_text(dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
