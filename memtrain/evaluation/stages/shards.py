"""Which part of the work, prompts or images, this process does: said on the command line, or by its array or launcher.

`--shard 1/4` is the second of four. Without it, a Slurm job array (`sbatch --array=0-3`) and torchrun say so themselves
through their variables; in an array of torchruns each process has its own part. `--shard merge` does no part and
puts together what all have written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from memtrain.errors import ConfigurationError

MERGE = "merge"
"""The word for no part of the work, but all results."""


@dataclass(frozen=True)
class Shard:
    """One of `count` parts.

    Attributes:
        index: its number, from 0.
        count: how many there are.
    """

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def read_shard(text: str | None = None, *, environment: Mapping[str, str] | None = None) -> Shard | None:
    """The part that `text` or the environment names.

    Args:
        text: `index/count` with the index from 0, `merge`, or None to ask the environment.
        environment: default the process's own.

    Returns:
        The part, all of the work where nothing says otherwise; None to merge.

    Raises:
        ConfigurationError: if `text` names none.
    """
    if text == MERGE:
        return None
    if text is not None:
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if found is None or int(found[1]) >= int(found[2]):
            raise ConfigurationError(
                f"shard={text!r} names no part of the work",
                expected="index/count with the index from 0, such as 0/4 to 3/4, or merge",
                remedy="correct --shard",
            )
        return Shard(int(found[1]), int(found[2]))
    variables = os.environ if environment is None else environment
    tasks = int(variables.get("SLURM_ARRAY_TASK_COUNT", 1))
    task = 0
    if tasks > 1:
        first = int(variables.get("SLURM_ARRAY_TASK_MIN", 0))
        step = int(variables.get("SLURM_ARRAY_TASK_STEP", 1))
        task = (int(variables.get("SLURM_ARRAY_TASK_ID", 0)) - first) // step
    ranks, rank = int(variables.get("WORLD_SIZE", 1)), int(variables.get("RANK", 0))
    if not 0 <= task < tasks or not 0 <= rank < ranks:
        raise ConfigurationError(
            f"The environment names task {task} of {tasks} and rank {rank} of {ranks}",
            expected="numbers below their counts; an array without gaps, such as --array=0-3",
            remedy="say which part this is with --shard index/count",
        )
    return Shard(task * ranks + rank, tasks * ranks)
