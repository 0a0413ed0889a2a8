"""Which part of the work, prompts or images, this process does: said on the command line, or by its array or launcher.

`--shard 1/4` is the second of four. `--shard array` takes the part from the variables of a Slurm job array (`sbatch
--array=0-3`), as the scripts in `slurm/` do by themselves; without it an array is somebody's own, such as one with a
model for each task, and every task does all of its work. torchrun says by its variables which part a process has; in an
array of torchruns each process has its own. `--shard merge` does no part and puts together what all have written.

The last process to finish its part puts the parts together, unless `MEMTRAIN_MERGE=job` says that a job of its own
does, as `slurm/array.sh` has it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from memtrain.errors import ConfigurationError

MERGE = "merge"
"""The word for no part of the work, but all results."""
ARRAY = "array"
"""The word for the part that a Slurm job array gives to this task."""
VARIABLE = "MEMTRAIN_SHARD"
"""What stands for `--shard` where that is not said."""


LATER = "MEMTRAIN_MERGE"
"""The variable that says who puts the parts together: `job`."""


def _merged_by_a_job(variables: Mapping[str, str]) -> bool:
    said = variables.get(LATER, "")
    if said not in ("", "job"):
        raise ConfigurationError(f"{LATER}={said!r:.80}", expected="job, or nothing", remedy=f"unset {LATER}")
    return said == "job"


@dataclass(frozen=True)
class Shard:
    """One of `count` parts.

    Attributes:
        index: its number, from 0.
        count: how many there are.
        merges: whether this process, if it is the last to finish its part, puts the parts together.
    """

    index: int = 0
    count: int = 1
    merges: bool = field(default=True, compare=False)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard()
"""All of the work in one process."""


def read_shard(text: str | None = None, *, environment: Mapping[str, str] | None = None) -> Shard | None:
    """The part that `text` or the environment names.

    Args:
        text: `index/count` with the index from 0, `merge`, `array`, or None to ask the environment.
        environment: default the process's own.

    Returns:
        The part, all of the work where nothing says otherwise; None to merge.

    Raises:
        ConfigurationError: if `text` names none.
    """
    variables = os.environ if environment is None else environment
    text = variables.get(VARIABLE) if text is None else text
    if text == MERGE:
        return None
    merges = not _merged_by_a_job(variables)
    if text is not None and text != ARRAY:
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if found is None or int(found[1]) >= int(found[2]):
            raise ConfigurationError(
                f"shard={text!r} names no part of the work",
                expected="index/count with the index from 0, such as 0/4 to 3/4, array or merge",
                remedy="correct --shard",
            )
        return Shard(int(found[1]), int(found[2]), merges)
    tasks = _number(variables, "SLURM_ARRAY_TASK_COUNT", 1) if text == ARRAY else 1
    task = 0
    if tasks > 1:
        first = _number(variables, "SLURM_ARRAY_TASK_MIN", 0)
        step = max(_number(variables, "SLURM_ARRAY_TASK_STEP", 1), 1)
        task = (_number(variables, "SLURM_ARRAY_TASK_ID", 0) - first) // step
    # A WORLD_SIZE that is left over from something else comes without a rank.
    ranks, rank = (
        (_number(variables, "WORLD_SIZE", 1), _number(variables, "RANK", 0)) if "RANK" in variables else (1, 0)
    )
    if not 0 <= task < tasks or not 0 <= rank < ranks:
        raise ConfigurationError(
            f"The environment names task {task} of {tasks} and rank {rank} of {ranks}",
            expected="numbers below their counts; an array without gaps, such as --array=0-3",
            remedy="say which part this is with --shard index/count",
        )
    return Shard(task * ranks + rank, tasks * ranks, merges)


def _number(variables: Mapping[str, str], name: str, default: int) -> int:
    given = variables.get(name, str(default))
    if not given.strip().lstrip("-").isdecimal():
        raise ConfigurationError(
            f"The variable {name} is {given!r:.80}", expected="a whole number", remedy="unset it, or say --shard 0/1"
        )
    return int(given)


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Options of a stage whose work several processes share.

    Args:
        shard: the part of the work to do, `index/count` with the index from 0; `array` takes it from a Slurm job array,
            `merge` does none and puts together what others wrote. Whoever is last writes the results. By default what
            torchrun says, or all of the work. `localize` takes it twice: once to search, and once for what comes after.
        engine: `local`: in this process. `ray`: in parts on Ray (extra `ray`), with the same results: a part for each
            processor or GPU, of `measure --checkpoints` one for each checkpoint.
        engine_address: of a Ray cluster, such as `auto` or `ray://head:10001`; default a Ray of its own on this
            machine. All machines need memtrain in this version and the same files under the same paths.
        engine_tasks: parts at a time on Ray; default as many as it has GPUs, or else processors.
    """

    shard: str | None = None
    engine: Literal["local", "ray"] = "local"
    engine_address: str | None = None
    engine_tasks: int | None = None

    @property
    def own_shard(self) -> Shard | None:
        """The part that the option or the environment names; None to merge."""
        return read_shard(self.shard)
