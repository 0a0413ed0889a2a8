"""A job that Slurm starts again and again has to come further, or it is stopped with a message.

Written into the run folder at each start by the first process: which start of which job it was, the newest checkpoint
there was, and how much lay in the folders of caches. A new checkpoint is progress, and so is a cache that has grown: at
a million images the caches alone may take longer than one time limit. One start without either is forgiven, because a
preemption may end it in its first minute; a second one in a row is the last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.text import read_json_object
from memtrain.files.whole import written_whole

NAME = ".last_start.json"
"""In the run folder."""
FORGIVEN = 1
"""Starts in a row without progress."""


def require_progress(folder: Path, config: Any) -> None:
    """Note this start of a Slurm job; refuse it if those before it came no further. Outside of jobs, nothing.

    Args:
        folder: the folder of the run.
        config: the configuration of the command, which names the folders of caches.

    Raises:
        ConfigurationError: saying what did not grow.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    start = int(os.environ.get("SLURM_RESTART_COUNT") or 0) + 1
    found = {"checkpoint": _newest(folder), "kept": _kept([folder / "profiles", *_folders(config)])}
    note = folder / NAME
    try:
        last: Mapping[str, Any] = read_json_object(note, what="a note of the last start", remedy="delete it")
    except DataError:
        last = {}
    same = last.get("job") == job and start > 1 and all(last.get(name) == value for name, value in found.items())
    # Those that ended before they came here count, too.
    in_vain = int(last.get("in_vain", 0)) + max(1, start - int(last.get("start", 0))) if same else 0
    if in_vain > FORGIVEN:
        raise ConfigurationError(
            f"The last {in_vain} starts of job {job} made no progress: no checkpoint was written, and no cache has "
            f"grown (newest checkpoint: {found['checkpoint'] or 'none'})",
            expected="a new checkpoint or larger caches at each start",
            remedy="look in the log why they ended; give the job more time (--time), or ModelCheckpoint a smaller "
            "every_n_train_steps, and submit it again",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(note) as unfinished:
        unfinished.write_text(
            json.dumps({"job": job, "start": start, "in_vain": in_vain, **found}) + "\n", encoding="utf-8"
        )


def _newest(folder: Path) -> str:
    """Name and time of the newest checkpoint; empty if there is none."""
    found = [(path.stat().st_mtime_ns, path.name) for path in folder.glob("checkpoints/*.ckpt")]
    return "{1}, written at {0} ns".format(*max(found)) if found else ""


def _kept(folders: list[Path]) -> int:
    """Bytes in folders."""
    paths = {path for folder in folders for path in folder.rglob("*")}
    return sum(path.stat().st_size for path in paths if path.is_file())


def _folders(config: Any) -> Iterator[Path]:
    """The folders of caches that a configuration names."""
    if isinstance(config, (list, tuple)):
        for one in config:
            yield from _folders(one)
    elif hasattr(config, "items"):
        for name, value in config.items():
            if isinstance(value, str) and str(name).rpartition(".")[2].split("_")[-1] == "folder":
                yield Path(value)
            elif not isinstance(value, str):
                yield from _folders(value)
