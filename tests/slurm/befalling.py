"""What befalls a run in a job: the wait for the time limit's signal, or the death of its second process."""

import os
import signal
import time
from typing import Any

from lightning.pytorch import Callback, Trainer

from memtrain.callbacks.stop_on_signal import StopOnSignal


class Befalling(Callback):
    """At the fourth batch of a job's first start.

    Args:
        what: `signal` or `death`.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Wait, or die."""
        if trainer.global_step != 3 or os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
            return
        if self.what == "death":
            if trainer.global_rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return
        stop = next(one for one in trainer.callbacks if isinstance(one, StopOnSignal))  # type: ignore[attr-defined]
        print("waiting for the signal", flush=True)
        until = time.monotonic() + 75
        while stop._received is None and time.monotonic() < until:
            time.sleep(0.05)
