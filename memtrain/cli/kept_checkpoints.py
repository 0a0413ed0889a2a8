"""The checkpoints that a run kept, and what each holds of a monitor's evidence.

They are read as plain tensors and numbers; one that would have to be unpickled is left out with a warning.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run.

    Attributes:
        path: the file.
        step: the optimizer steps until then.
        flagged: the keys that were flagged until then.
    """

    path: Path
    step: int
    flagged: frozenset[str]


def kept_checkpoints(run: Path, config: dict[str, Any]) -> list[Checkpoint]:
    """The checkpoints of a run: in its folder, or in the folder that its configuration names."""
    given = [
        one.get("init_args") or {}
        for one in callbacks_of(config)
        if str(one.get("class_path")).endswith("ModelCheckpoint")
    ]
    folders = [run / "checkpoints", *(Path(one["dirpath"]) for one in given if one.get("dirpath"))]
    found = next((paths for folder in folders if (paths := sorted(folder.glob("**/*.ckpt")))), [])
    return [one for path in found if (one := _read(path)) is not None]


def _read(path: Path) -> Checkpoint | None:
    """The content of a checkpoint; None if it holds no state of a monitor, from which evidence could go on."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        log.warning("%s is left out: it cannot be read as plain tensors and numbers (%s)", path, type(error).__name__)
        return None
    monitor = next((part for name, part in state.get("callbacks", {}).items() if "MemorizationMonitor" in name), None)
    if not monitor or "calibration" not in monitor:
        return None
    return Checkpoint(path, int(state["global_step"]), frozenset(monitor["calibration"].get("first_flagged", ())))


def callbacks_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a configuration, in which one may stand without a list."""
    given = config.get("trainer", {}).get("callbacks") or []
    return [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, dict)]
