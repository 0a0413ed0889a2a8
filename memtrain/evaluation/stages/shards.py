"""Share of the work, prompts or images, of this process: from the command line, a job array or a launcher.

`--shard 1/4` is the second of four shares. `--shard array` takes the share from the variables of a Slurm job array
(`sbatch --array=0-3`), like the scripts in `slurm/`. Without it, every task of an array does all of its work, for
instance with a model for each task. The variables of torchrun give the share of a process; in an array of torchruns
each process has its own share. `--shard merge` does no share, and merges the results of all processes.

The last process to finish its share merges the results. With `MEMTRAIN_MERGE=job` a separate job merges them, as in
`slurm/array.sh`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from memtrain.errors import ConfigurationError

MERGE = "merge"
"""Value of `--shard` to do no work and merge the results."""
ARRAY = "array"
"""Value of `--shard` to take the share from a Slurm job array."""
VARIABLE = "MEMTRAIN_SHARD"
"""Environment variable that replaces `--shard`."""


LATER = "MEMTRAIN_MERGE"
"""Environment variable that is `job` if a separate job merges the results."""


def _merged_by_a_job(variables: Mapping[str, str]) -> bool:
    said = variables.get(LATER, "")
    if said not in ("", "job"):
        raise ConfigurationError(f"{LATER}={said!r:.80}", expected="job, or nothing", remedy=f"unset {LATER}")
    return said == "job"


@dataclass(frozen=True)
class Shard:
    """One of `count` shares of the work.

    Attributes:
        index: the number of the share, from 0.
        count: the number of shares.
        merges: whether this process merges the results if it is the last to finish.
    """

    index: int = 0
    count: int = 1
    merges: bool = field(default=True, compare=False)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard()
"""All of the work in one process."""


def read_shard(text: str | None = None, *, environment: Mapping[str, str] | None = None) -> Shard | None:
    """Read the share from `text` or from the environment.

    Args:
        text: the value `index/count` with the index from 0, `merge`, `array`, or None to use the environment.
        environment: the environment variables; by default those of the process.

    Returns:
        The share, by default all of the work; None to merge.

    Raises:
        ConfigurationError: if `text` names no share.
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
                f"shard={text!r} names no share of the work",
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
    # A WORLD_SIZE of another program comes without a rank.
    ranks, rank = (
        (_number(variables, "WORLD_SIZE", 1), _number(variables, "RANK", 0)) if "RANK" in variables else (1, 0)
    )
    if not 0 <= task < tasks or not 0 <= rank < ranks:
        raise ConfigurationError(
            f"The environment names task {task} of {tasks} and rank {rank} of {ranks}",
            expected="numbers below their counts; an array without gaps, such as --array=0-3",
            remedy="name the share with --shard index/count",
        )
    return Shard(task * ranks + rank, tasks * ranks, merges)


def _number(variables: Mapping[str, str], name: str, default: int) -> int:
    given = variables.get(name, str(default))
    if not given.strip().lstrip("-").isdecimal():
        raise ConfigurationError(
            f"The variable {name} is {given!r:.80}",
            expected="a whole number",
            remedy=f"unset {name}, or use --shard 0/1",
        )
    return int(given)


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Options of a stage whose work several processes share.

    Args:
        shard: share of the work of this process, `index/count` with the index from 0. `array` takes it from a Slurm job
            array, `merge` only merges the results. The last process writes the results. By default the share from
            torchrun, or all of the work. Run `localize` twice with it: once to search, and once for the rest.
        engine: `local` works in this process; `ray` works in parts on Ray (extra `ray`), with the same results. There
            is a part for each processor or GPU; for `measure --checkpoints`, one for each checkpoint.
        engine_address: address of a Ray cluster, such as `auto` or `ray://head:10001`; by default a new Ray on this
            machine. All machines need this version of memtrain, and the same files in the same paths.
        engine_tasks: number of parts at the same time on Ray; by default the number of its GPUs, or of its processors.
    """

    shard: str | None = None
    engine: Literal["local", "ray"] = "local"
    engine_address: str | None = None
    engine_tasks: int | None = None

    @property
    def own_shard(self) -> Shard | None:
        """Share from the option or the environment; None to merge."""
        return read_shard(self.shard)
