"""The checkpoint that `--ckpt_path` names, looked at before anything is loaded.

Accepted: a file that Lightning wrote in a training, of plain tensors and numbers. Refused with one line
that names the reason: a path without a file, a folder, a file that is cut off or no checkpoint, and a checkpoint of
another program. Refused as well are files of weights alone, and files that need unpickling, which can run code.
`last`, `best` and `hpc` are Lightning's to find.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from memtrain.errors import ConfigurationError
from memtrain.files.shown import shown

FOUND_BY_LIGHTNING = (None, "last", "best", "hpc")


def require_checkpoint(given: str | Path | None) -> None:
    """Refuse what no training can be continued from.

    Args:
        given: `--ckpt_path`.

    Raises:
        ConfigurationError: saying what it is.
    """
    if given in FOUND_BY_LIGHTNING or "://" in str(given):
        return
    path = Path(str(given))
    if not path.exists():
        raise _refused(f"does not exist{_beside(path.parent)}", path)
    if path.is_dir():
        raise _refused(f"is a folder{_beside(path)}", path)
    if not zipfile.is_zipfile(path):
        raise _refused(
            f"is cut off, or no checkpoint: {path.stat().st_size:,} bytes that are no archive of torch", path
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise _refused(f"cannot be read as plain tensors and numbers: {type(error).__name__}: {first}", path) from error
    if lacking := _lacking(state):
        raise _refused(lacking, path)


def _lacking(state: Any) -> str:
    """The part of a training's checkpoint that a file lacks; empty if it is complete."""
    if not isinstance(state, Mapping):
        return f"holds a {type(state).__name__}"
    if "state_dict" not in state or "loops" not in state:
        names = [str(name) for name in state]
        return f"was not written by a training: it holds {', '.join(names[:4])}{' and more' if len(names) > 4 else ''}"
    if not state.get("optimizer_states") and not state.get("lr_schedulers"):
        return "holds weights alone (save_weights_only), without the optimizer"
    return ""


def _beside(folder: Path) -> str:
    """The checkpoints in a folder, for a message."""
    names = sorted(one.name for one in folder.glob("*.ckpt")) if folder.is_dir() else []
    if not names:
        names = sorted(str(one.relative_to(folder)) for one in folder.glob("checkpoints/*.ckpt"))
    return f"; there are {', '.join(names[-3:])}" if names else ""


def _refused(found: str, path: Path) -> ConfigurationError:
    return ConfigurationError(
        shown(f"--ckpt_path {path} {found}"),
        expected="a checkpoint that ModelCheckpoint wrote in a training (.ckpt)",
        remedy="name another one, such as last for the newest of the run's folder; ModelCheckpoint's "
        "`save_top_k=-1` keeps more than one",
    )
