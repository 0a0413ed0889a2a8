"""Shared code of several benchmarks: a training run with its evaluation as commands, and an interval for a median."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from json import loads
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
TAIL = 15
"""Lines of a log that are shown when a command fails."""


def configuration(path: Path) -> dict[str, Any]:
    """A configuration file, with what it takes from the file that it builds on."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "config" not in content:
        return content
    found = configuration(path.parent / content.pop("config"))
    for name, value in content.items():
        *groups, last = name.split(".")
        place = found
        for group in groups:
            place = place[group]
        place[last] = value
    return found


class CommandError(Exception):
    """A command ended with an error; the message has the end of what it printed."""


def call(arguments: Sequence[str], *, log: Path | None = None, threads: int | None = None) -> None:
    """Run one of the project's Python commands.

    Args:
        arguments: script and arguments.
        log: what it prints is appended here instead of being shown.
        threads: the number of threads of the process; default as many as it likes.

    Raises:
        CommandError: if it fails.
    """
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, *arguments]
    if log is None:
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)  # noqa: S603
        tail = ""
    else:
        environment["TQDM_DISABLE"] = "1"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            print("$ python", *arguments, file=file, flush=True)
            done = subprocess.run(  # noqa: S603
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
            )
        tail = "\n".join(["", *log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]])
    if done.returncode:
        raise CommandError(f"{' '.join(arguments[:2])} ended with {done.returncode}{tail}")


def train_and_evaluate(
    place: Path,
    training: Sequence[str],
    *,
    evaluation: Sequence[str] | None = None,
    before_evaluation: Callable[[Path], None] | None = None,
    log: Path | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Train and evaluate, unless that is done; a run that was interrupted goes on from its last checkpoint.

    Args:
        place: folder of the run.
        training: arguments of `train.py fit`, without the folder.
        evaluation: arguments of `evaluate.py`; default `--run` with the folder.
        before_evaluation: is given the folder between the two.
        log: see :func:`call`.
        threads: see :func:`call`.

    Returns:
        The content of results.json.
    """
    results = place / "evaluation" / "results.json"
    if not (place / "pipeline" / "model_index.json").is_file():
        where = ["--trainer.default_root_dir", str(place), "--ckpt_path", "last"]
        call(["train.py", "fit", *training, *where], log=log, threads=threads)
    if not results.is_file():
        if before_evaluation is not None:
            before_evaluation(place)
        call(["evaluate.py", *(evaluation or ["--run", str(place)])], log=log, threads=threads)
    content: dict[str, Any] = loads(results.read_text(encoding="utf-8"))
    return content


def median_interval(values: list[float]) -> list[float]:
    """A 95 % interval for the median, from order statistics (no assumption about the distribution)."""
    ordered, count = sorted(values), len(values)
    spread = 1.96 * count**0.5 / 2
    low, high = int(count / 2 - spread), int(count / 2 + spread + 0.5)
    return [ordered[max(low, 0)], ordered[min(high, count - 1)]]
