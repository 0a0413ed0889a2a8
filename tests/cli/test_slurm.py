"""A process in a Slurm allocation that `srun` did not start."""

import os

import pytest

from memtrain.cli.slurm import one_of_an_allocation


@pytest.mark.parametrize(
    ("tasks", "step", "alone"), [("4", None, True), ("4", "1", True), ("4", "4", False), ("1", "1", False)]
)
def test_a_process_that_srun_started_alone_is_one(
    tasks: str, step: str | None, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    if step is not None:
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", step)
    assert one_of_an_allocation() is alone
    assert os.environ["SLURM_JOB_NAME"] == ("interactive" if alone else "train")
