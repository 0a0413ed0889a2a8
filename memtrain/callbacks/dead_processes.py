"""Which process of a run ended first, where the process that notices it is the one that started the others.

A connection says only that somebody is gone. Under `srun` the job's script names the rank, under torchrun its summary
does; where Lightning starts the processes of a machine by itself (`--trainer.devices 2`), the first one can ask them.
"""

from __future__ import annotations

import signal
import socket
import time
from typing import Any

SECONDS = 2.0
"""To wait for the end of a process whose connections are closed already."""


def name_ended(trainer: Any, exception: BaseException) -> None:
    """Note in an exception which processes had ended, and how.

    Args:
        trainer: whose launcher started the others, or did not.
        exception: that ends the training here.
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
