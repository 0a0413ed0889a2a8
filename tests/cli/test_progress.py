"""Starts of a Slurm job that come no further."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import Namespace

from memtrain.cli.progress import require_progress
from memtrain.errors import ConfigurationError


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The job's n-th start, as Slurm announces it."""
    caches = tmp_path / "caches"
    callback = Namespace(class_path="M", init_args=Namespace(reference_folder=str(caches)))
    config = Namespace(trainer=Namespace(callbacks=[callback]), data=Namespace(path=str(tmp_path)))

    def begin(number: int, job: str = "7") -> None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number - 1))
        require_progress(tmp_path / "run", config)

    return begin


def test_two_starts_in_vain_are_the_last(start) -> None:
    start(1)
    start(2)
    with pytest.raises(ConfigurationError, match="The last 2 starts of job 7 made no progress") as refused:
        start(3)
    assert "newest checkpoint: none" in str(refused.value)
    start(1, job="8")  # submitted anew


def test_starts_that_did_not_come_so_far_count(start) -> None:
    start(1)
    with pytest.raises(ConfigurationError, match="The last 3 starts"):
        start(4)


@pytest.mark.parametrize("grown", ["run/checkpoints/last.ckpt", "run/profiles/a/1.parquet", "caches/deep/part"])
def test_a_checkpoint_or_more_in_a_cache_is_progress(start, tmp_path: Path, grown: str) -> None:
    start(1)
    start(2)
    (tmp_path / grown).parent.mkdir(parents=True)
    (tmp_path / grown).write_text("more")
    start(3)
    start(4)
    with pytest.raises(ConfigurationError, match="starts of job 7"):
        start(5)


def test_outside_of_jobs_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    require_progress(tmp_path / "run", Namespace())
    assert not list(tmp_path.iterdir())
