"""What the system and a job's limit leave."""

from pathlib import Path

import pytest
import torch

from memtrain.evaluation.sampling import free_memory as module
from memtrain.evaluation.sampling.free_memory import free_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(("limit", "expected"), [("max", 2048000), ("1000000", 700000), ("900000000", 2048000)])
def test_the_smaller_of_what_is_available_and_what_the_job_may_take(
    limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    2000 kB\n")
    job = tmp_path / "jobs" / "7" / "step"
    job.mkdir(parents=True)
    (job / "memory.max").write_text("max\n")
    for name, text in (("max", limit), ("current", "500000"), ("stat", "anon 1\ninactive_file 200000")):
        (job.parent / f"memory.{name}").write_text(text + "\n")
    (tmp_path / "own").write_text("0::/jobs/7/step\n")
    monkeypatch.setattr(module, "PROCESS", tmp_path / "own")
    monkeypatch.setattr(module, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(module, "GROUP", tmp_path)
    assert free_memory(CPU) == expected


def test_nobody_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(module, "GROUP", tmp_path)
    assert free_memory(CPU) is None
    assert free_memory(torch.device("meta")) is None
