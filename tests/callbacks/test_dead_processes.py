"""Which of the processes that this one started has ended."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from memtrain.callbacks import dead_processes
from memtrain.callbacks.dead_processes import name_ended


def notes(*programs: str) -> list[str]:
    children = [subprocess.Popen([sys.executable, "-S", "-c", program]) for program in programs]
    error = RuntimeError("Connection closed by peer")
    try:
        name_ended(SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=children))), error)
    finally:
        for child in children:
            child.kill()
            child.wait()
    return [note.split(" (")[0] + note.partition(")")[2] for note in getattr(error, "__notes__", [])]


def test_ranks_that_ended_are_named_with_how() -> None:
    kill = "import os; os.kill(os.getpid(), 9)"
    assert notes("import time; time.sleep(30)", kill) == ["local rank 2 was killed by SIGKILL"]
    assert notes("raise SystemExit(3)") == ["local rank 1 was over, with status 3"]


def test_where_all_live_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_processes, "SECONDS", 0.1)
    began = time.monotonic()
    assert notes("import time; time.sleep(30)") == []
    assert time.monotonic() - began < 2
    error = RuntimeError()
    name_ended(SimpleNamespace(strategy=SimpleNamespace(launcher=None)), error)
    assert not hasattr(error, "__notes__")
