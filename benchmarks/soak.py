"""Does a long training, or a process that evaluates again and again, grow in memory, open files or threads?

    python benchmarks/soak.py --minutes 120 --json benchmarks/soak.json

Half the time goes to one training of configs/tiny.yaml without an end (monitor, replacement, validation, checkpoints,
records), half to one process that calls `detect` and `measure` in turn. Each process, with its children, is looked at
every few seconds: memory that it alone holds (USS), open file descriptors, threads. The first fifth of each half is
warm-up. The report has Theil and Sen's slope with its 95 % interval over the rest, and the resulting growth. The
command ends with status 1 if memory grows by more than 2 % of its median within the time and the interval is above 0.
It also does so if more files or threads are open in the last tenth than ever in the tenth after the warm-up.

A killed soak goes on where it stopped, in whole halves: what was seen is kept in FILE's folder until both are done.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from experiment import ROOT
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from scipy.stats import theilslopes

PHASES = ("training", "evaluation")
PROMPTS = "a red fox\na lighthouse by the sea\na bowl of fruit\n"
MIB = 2**20
GROWTH = 0.02
"""Share of the median by which memory may grow."""


def command(phase: str, folder: Path, seconds: float) -> list[str]:
    """The work of a half."""
    if phase == "evaluation":
        return [sys.executable, str(Path(__file__).resolve()), "--evaluate_in", str(folder), "--seconds", f"{seconds}"]
    options = {"max_steps": 10**9, "default_root_dir": folder / "run", "enable_progress_bar": "false"}
    words = [word for name, value in options.items() for word in (f"--trainer.{name}", str(value))]
    return [sys.executable, "train.py", "fit", "--config", "configs/tiny.yaml", *words]


def evaluate_again_and_again(folder: Path, seconds: float) -> None:
    """Two stages in turn, in this process, until the time is over."""
    from memtrain.cli import evaluate

    prompts = folder / "prompts.txt"
    prompts.write_text(PROMPTS, encoding="utf-8")
    model = ["--model", "assets/tiny-sd", "--images_per_prompt", "2", "--steps", "5"]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        evaluate(["detect", *model, "--prompts", str(prompts), "--output", str(folder / "detect")])
        data = ["--data", "assets/clipart-pd.tar", "--max_prompts", "4", "--unique_prompts", "4", "--detectors", "none"]
        evaluate(["measure", *model, *data, "--output", str(folder / "measure")])
        for result in folder.rglob("*"):  # so that the next turn works instead of finding everything done
            if result.is_file() and result != prompts:
                result.unlink()


def look(process: psutil.Process) -> dict[str, float]:
    """Memory, files and threads of a process and its children."""
    found = {"memory": 0.0, "files": 0, "threads": 0}
    for one in (process, *process.children(recursive=True)):
        try:
            found["memory"] += one.memory_full_info().uss
            found["files"] += one.num_fds()
            found["threads"] += one.num_threads()
        except psutil.NoSuchProcess:
            continue
    return found


def watched(phase: str, *, seconds: float, every: float) -> list[dict[str, float]]:
    """Run a half and look at it.

    Raises:
        RuntimeError: if it ends by itself in an error.
    """
    seen: list[dict[str, float]] = []
    # Whoever ends the soak ends what it watches, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as name, (Path(name) / "log").open("w+", encoding="utf-8") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        child = subprocess.Popen(  # noqa: S603
            command(phase, Path(name), seconds), cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        start = time.monotonic()
        try:
            while child.poll() is None and time.monotonic() < start + seconds:
                time.sleep(every)
                try:
                    seen.append({"time": time.monotonic() - start, **look(psutil.Process(child.pid))})
                except psutil.NoSuchProcess:
                    break
            ended = child.poll()
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
                try:
                    child.wait(timeout=120)
                except subprocess.TimeoutExpired:
                    child.kill()
        if ended:
            log.seek(0)
            raise RuntimeError(f"{phase} ended with status {ended}:\n{log.read()[-2000:]}")
    return seen


def figures(seen: list[dict[str, float]]) -> dict[str, Any]:
    """Slopes and peaks of a half, without its warm-up."""
    rest = seen[len(seen) // 5 :]
    tenth = max(1, len(seen) // 10)
    hours = [one["time"] / 3600 for one in rest]
    memory = [one["memory"] / MIB for one in rest]
    slope, _, low, high = theilslopes(memory, hours)
    growth = (hours[-1] - hours[0]) * slope / median(memory)
    found: dict[str, Any] = {
        "hours": round(seen[-1]["time"] / 3600, 2),
        "looks": len(seen),
        "memory_mib": round(median(memory), 1),
        "slope_mib_per_hour": round(float(slope), 2),
        "interval": [round(float(low), 2), round(float(high), 2)],
        "growth": round(float(growth), 4),
        "memory_grow": bool(growth > GROWTH and low > 0),
    }
    for name in ("files", "threads"):
        first, last = (max(one[name] for one in part) for part in (rest[:tenth], rest[-tenth:]))
        found |= {name: [int(first), int(last)], f"{name}_grow": bool(last > first)}
    return found


def soak(
    minutes: float = 120.0,
    every: float = 5.0,
    json: str | None = None,
    evaluate_in: str | None = None,
    seconds: float = 0.0,
) -> None:
    """Run both halves and print what grew.

    Args:
        minutes: the number of minutes of both halves together.
        every: seconds between looks.
        json: file for the figures.
        evaluate_in: used by the command itself.
        seconds: used by the command itself.
    """
    if evaluate_in is not None:
        evaluate_again_and_again(Path(evaluate_in), seconds)
        return
    kept = Path(f"{json}.part") if json else None
    results: dict[str, Any] = loads(kept) if kept is not None and kept.is_file() else {}
    for phase in PHASES:
        if phase not in results:
            results[phase] = figures(watched(phase, seconds=60 * minutes / len(PHASES), every=every))
            if kept is not None:
                dumps(results, kept)
    table = Table("half", "hours", "memory, MiB", "slope, MiB per hour", "growth", "files", "threads")
    for phase, one in results.items():
        slope = f"{one['slope_mib_per_hour']:+.1f} ({one['interval'][0]:+.1f} to {one['interval'][1]:+.1f})"
        files, threads = (f"{one[name][0]} → {one[name][1]}" for name in ("files", "threads"))
        row = (f"{one['hours']}", f"{one['memory_mib']:.0f}", slope, f"{100 * one['growth']:+.1f} %", files, threads)
        table.add_row(phase, *row)
    Console().print(table)
    if json:
        dumps(results, Path(json))
        Path(f"{json}.part").unlink(missing_ok=True)
    names = ("memory", "files", "threads")
    grown = [f"{phase}: {name}" for phase, one in results.items() for name in names if one[f"{name}_grow"]]
    print(f"Grows: {', '.join(grown)}" if grown else "Nothing grows.")
    sys.exit(bool(grown))


def loads(path: Path) -> dict[str, Any]:
    """Figures of a file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def dumps(results: dict[str, Any], path: Path) -> None:
    """Write figures to a file."""
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(soak, as_positional=False)
