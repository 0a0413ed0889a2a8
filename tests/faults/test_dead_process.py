"""A process of several that dies: the others end with the cause within a minute, instead of waiting."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

PROCESS = """
import os, signal, sys, torch
from memtrain.cli.faults import explained
from memtrain.monitoring import processes
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
processes.gather([rank])
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    processes.gather([rank])
except Exception as error:
    print(explained(error, again="python train.py again", smaller=""), file=sys.stderr, flush=True)
    os._exit(1)  # gloo may abort the process when Python takes it down in order
"""


@pytest.mark.slow
def test_the_other_process_ends_with_the_cause_and_the_command_that_goes_on() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS], env={**shared, "RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in ("0", "1")
    ]
    said = both[0].communicate(timeout=60)[1]
    both[1].communicate(timeout=60)
    assert time.monotonic() - began < 60
    if both[0].returncode == -signal.SIGABRT:  # by gloo itself, in a thread of its own, before Python is told
        return
    assert both[0].returncode == 1
    assert "Another process of this run ended or can no longer be reached" in said
    assert "go on with: python train.py again" in said
