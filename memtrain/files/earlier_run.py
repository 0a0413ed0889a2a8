"""The run of a checkpoint, and the parts that a run in another folder takes over from it.

`--ckpt_path A/checkpoints/last.ckpt --trainer.default_root_dir B` makes a branch: B goes on from A's checkpoint. The
earlier findings of A are copied from there, file by file, and A does not change. A checkpoint that was taken out of its
run's folder has no such files beside it. A missing file that is needed is then named in the error.
"""

from __future__ import annotations

import shutil
from pathlib import Path

LEVELS = 3
"""The largest depth of a checkpoint in its run's folder."""


def run_of(checkpoint: str | Path | None, part: str) -> Path | None:
    """Return the folder above a checkpoint that holds a part of a run; None if there is none.

    Args:
        checkpoint: the path of the checkpoint.
        part: the wanted part of the folder, such as `records/steps`.
    """
    if checkpoint is None:
        return None
    parents = list(Path(checkpoint).absolute().parents)[:LEVELS]
    return next((folder for folder in parents if (folder / part).is_dir()), None)


def taken_over(checkpoint: str | Path | None, part: str, *, into: Path) -> bool:
    """Copy a part of the checkpoint's run to another folder that lacks it.

    Args:
        checkpoint: the path of the checkpoint.
        part: the folder in the run, such as `families`.
        into: the folder of the copy.

    Returns:
        Whether something was copied.
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
