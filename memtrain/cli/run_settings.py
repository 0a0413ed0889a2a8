"""Numbers that no training has, and folders in which no run can begin: refused before anything is loaded."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from memtrain.cli.stopped import continue_training
from memtrain.errors import ConfigurationError
from memtrain.files.lock import locked
from memtrain.files.shown import shown
from memtrain.models.adapter_file import FILE as LORA_FILE

LIMITS: tuple[tuple[str, str, float, float], ...] = (
    ("", "seed_everything", 0, 2**32 - 1),
    ("trainer", "accumulate_grad_batches", 1, float("inf")),
    ("trainer", "max_steps", -1, float("inf")),
    ("data", "num_workers", 0, 4096),
    ("data", "resolution", 8, 16384),
    ("model", "warmup_steps", 0, float("inf")),
    ("model", "ema_decay", 0, 1),
)
"""Section, name, and the least and the greatest number that makes sense."""


def check_numbers(config: Any) -> None:
    """Refuse numbers that no training has.

    Args:
        config: the configuration of `fit`.

    Raises:
        ConfigurationError: naming the first.
    """
    for section, name, least, most in LIMITS:
        holder = config.get(section) if section else config
        if holder is not None and section in ("data", "model"):
            holder = holder.get("init_args")
        value = holder.get(name) if holder is not None else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not least <= value <= most or (name == "max_steps" and value == 0):
            expected = f"{least:g} or more" if most == float("inf") else f"a number from {least:g} to {most:,.0f}"
            raise ConfigurationError(
                f"{name}={value}",
                expected="a number of steps, or -1 for no limit" if name == "max_steps" else expected,
                remedy=f"change {name}",
            )


def require_new(folder: Path) -> None:
    """Refuse a folder in which a run lies: nothing of it, and nothing beside it, is moved or written over.

    Args:
        folder: the folder of the new run; it may hold other files.

    Raises:
        ConfigurationError: saying what may be meant.
    """
    left = ["checkpoints"] if any(folder.glob("checkpoints/*.ckpt")) else []
    left += [name for name in ("pipeline", LORA_FILE) if (folder / name).exists()]
    if not left:
        return
    with locked(folder, doing="train"):  # or else another training is at it
        pass
    free = next(one for number in count(2) if not (one := folder.with_name(f"{folder.name}-{number}")).exists())
    place, own = shown(shlex.quote(str(free))), shown(shlex.quote(str(folder)))
    remedy = f"add --trainer.default_root_dir {place}, or delete {own} if you need it no more"
    if "checkpoints" in left:
        remedy += f", or go on with it: {continue_training(folder)}"
    raise ConfigurationError(
        shown(f"{folder} holds an earlier run: {', '.join(left)}"),
        expected="a new folder for a new run",
        remedy=remedy,
    )


def require_apart(folder: Path, data: Any) -> None:
    """Refuse a run folder within a folder of data: the images that a run writes would be data of the next.

    Args:
        folder: the folder of the run.
        data: the settings of the data module.

    Raises:
        ConfigurationError: naming both.
    """
    for name, path in _data_folders(data):
        if folder.resolve().is_relative_to(path.resolve()):
            raise ConfigurationError(
                shown(f"The run folder {folder} lies in {path}, the {name} of the data"),
                expected="a run folder outside the data, whose images would become data of the next run",
                remedy="name another one with --trainer.default_root_dir",
            )


def _data_folders(data: Any) -> Iterator[tuple[str, Path]]:
    options = (data.get("init_args") if data is not None else None) or {}
    for name in ("path", "heldout_path"):
        value = options.get(name)
        if isinstance(value, str) and Path(value).is_dir():
            yield name, Path(value)
