"""The run that a checkpoint lies in, and what a run in another folder takes over from it.

`--ckpt_path A/checkpoints/last.ckpt --trainer.default_root_dir B` is a branch: B goes on where A was. What A found out
before is copied from there, file by file, and A is left as it is. A checkpoint that was taken out of its run's folder
has nothing beside it; then what is needed is refused by name.
"""

from __future__ import annotations

import shutil
from pathlib import Path

LEVELS = 3
"""So deep in its run's folder a checkpoint may lie."""


def run_of(checkpoint: str | Path | None, part: str) -> Path | None:
    """The folder above a checkpoint that holds a part of a run; None if there is none.

    Args:
        checkpoint: path of the file.
        part: what the folder holds, such as `records/steps`.
    """
    if checkpoint is None:
        return None
    parents = list(Path(checkpoint).absolute().parents)[:LEVELS]
    return next((folder for folder in parents if (folder / part).is_dir()), None)


def taken_over(checkpoint: str | Path | None, part: str, *, into: Path) -> bool:
    """Copy a part of the checkpoint's run to another folder that lacks it.

    Args:
        checkpoint: path of the file.
        part: folder in the run, such as `families`.
        into: what becomes of it.

    Returns:
        Whether there was something to copy.
    """
    run = run_of(checkpoint, part)
    if run is None or into.exists() or (run / part).resolve() == into.resolve():
        return False
    into.parent.mkdir(parents=True, exist_ok=True)
    unfinished = into.with_name(f".{into.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(run / part, unfinished)
    unfinished.rename(into)
    return True
