"""What grows with the data: how exponents and marks are judged, and that the command runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.scripts import Modules
from tests.conftest import ROOT

SIZES = (10_000, 100_000, 1_000_000)


def rows(**powers: float) -> dict[str, dict[str, float]]:
    return {str(size): {name: 2e-5 * size**power for name, power in powers.items()} for size in SIZES}


def test_an_exponent_is_the_slope_of_the_logarithms(scripts: Modules) -> None:
    found = scripts.scale.fitted(rows(one_s=1.0, two_s=1.5, none_s=0.0, weight_mb=1.0))
    assert found["one_s"] == pytest.approx(1.0)
    assert found["two_s"] == pytest.approx(1.5)
    assert found["weight_mb"] == pytest.approx(1.0)
    assert "none_s" not in found, "what takes no time has no exponent"
    assert scripts.scale.fitted(dict([*rows(one_s=1.0).items()][:1])) == {}


def test_marks_that_are_missed_are_named(scripts: Modules) -> None:
    found = {"watch": rows(step_s=0.5, checkpoint_bytes=0.0), "start": rows(restart_s=1.2)}
    exponents = {name: scripts.scale.fitted(part) for name, part in found.items()}
    lines = scripts.scale.missed(found, exponents)
    assert [line.split(" is")[0].split(" grows")[0] for line in lines] == [
        "watch.step_s",
        "start.restart_s",
        "watch.step_s",
        "start.restart_s",
    ]
    kept = {"watch": {str(size): {"step_s": 0.004, "checkpoint_bytes": 28.0} for size in SIZES}}
    assert scripts.scale.missed(kept, {"watch": scripts.scale.fitted(kept["watch"])}) == []


@pytest.mark.slow
def test_the_command_measures_every_part(tmp_path: Path) -> None:
    file, figure = tmp_path / "scale.json", tmp_path / "scale.png"
    command = [sys.executable, "benchmarks/scale.py", "--sizes", "[200, 400]", "--json", str(file)]
    done = subprocess.run(
        [*command, "--figure", str(figure)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    content = json.loads(file.read_text())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Missed: ") == len(content["missed"])
    assert set(content["parts"]) == {"watch", "records", "profile", "start", "stream", "families", "scan", "index"}
    assert set(content["monitor_update_s"]) == {"200", "400"}
    assert all(0 < seconds < 1 for seconds in content["monitor_update_s"].values())
    assert figure.read_bytes().startswith(b"\x89PNG")
