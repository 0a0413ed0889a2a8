"""A benchmark's command that fails says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.scripts import Modules


def test_a_failing_command_says_the_end_of_its_log(scripts: Modules, tmp_path: Path) -> None:
    experiment = scripts.experiment
    program = "import os, sys; print('threads', os.environ['OMP_NUM_THREADS']); sys.exit('too bad')"
    with pytest.raises(experiment.CommandError, match=r"ended with 1(.|\n)*too bad") as raised:
        experiment.call(["-c", program], log=tmp_path / "x.log", threads=1)
    assert "threads 1" in str(raised.value)
    assert "too bad" in (tmp_path / "x.log").read_text()
