"""A process in a Slurm allocation that `srun` did not start is one process, whatever the allocation has room for.

Lightning goes by the allocation's `SLURM_NTASKS`. In a shell of `salloc`, or in a job script without `srun`, it would
wait for tasks that nobody started, or end with an error about an unused setting.
"""

from __future__ import annotations

import logging
import os

log = logging.getLogger(__name__)


def one_of_an_allocation() -> bool:
    """Let Lightning take this process for an interactive one, if `srun` started no others beside it.

    Returns:
        Whether that is so.
    """
    room, started = os.environ.get("SLURM_NTASKS", "1"), os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if room == "1" or started != "1":
        return False
    os.environ["SLURM_JOB_NAME"] = "interactive"  # by which Lightning knows such a process
    log.warning(
        "The Slurm allocation has room for %s tasks, and srun started none beside this one: training is one process. "
        "For all of them: srun memtrain train ..., or slurm/train.sbatch",
        room,
    )
    return True
