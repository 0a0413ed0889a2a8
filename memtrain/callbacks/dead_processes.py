"""The name of the process that ended first, if the first process started the others.

A broken connection does not name the process that ended. Under `srun` the job's script names the rank, and under
torchrun its summary does. If Lightning starts the processes of a machine (`--trainer.devices 2`), the first process
asks them.
"""

from __future__ import annotations

import signal
import socket
import time
from typing import Any

SECONDS = 2.0
"""Seconds to wait for the end of a process after its connections have closed."""


def name_ended(trainer: Any, exception: BaseException) -> None:
    """Add a note to an exception that names the ended processes and their exit codes.

    Args:
        trainer: the trainer, whose launcher may have started the other processes.
        exception: the exception that ends the training in this process.
    """
    children = list(getattr(trainer.strategy.launcher, "procs", None) or [])
    if not children or not isinstance(exception, Exception):
        return
    until = time.monotonic() + SECONDS
    while not (codes := {rank: child.poll() for rank, child in enumerate(children, start=1) if child.poll()}):
        if time.monotonic() > until:
            return
        time.sleep(0.05)
    for rank, code in codes.items():
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"over, with status {code}"
        exception.add_note(f"local rank {rank} (process {children[rank - 1].pid} on {socket.gethostname()}) was {how}")
