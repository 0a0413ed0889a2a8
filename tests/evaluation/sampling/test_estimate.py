"""The estimate of a sampling: said once, after the first batch, and only where much is left."""

from __future__ import annotations

import pytest

from memtrain.evaluation.sampling import estimate as module
from memtrain.evaluation.sampling.estimate import Estimate, said


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    times = [0.0, 10.0, 20.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: times.pop(0))
    return times


def test_it_is_said_after_the_first_batch(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    left = Estimate(104, steps=50, size=(512, 256), device="cuda:0")
    left.batch(4)
    left.batch(4)
    text = capsys.readouterr().err
    assert (
        "104 images of 512x256 px in 50 steps on cuda:0: 2.5 s per image in the first batch, about 4 min left" in text
    )
    assert text.count("Sampling") == 1


def test_little_is_not_worth_a_word(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    Estimate(10, steps=50, size=(512, 512), device="cpu").batch(4)
    assert capsys.readouterr().err == ""


def test_times_are_said_in_minutes_and_hours() -> None:
    assert [said(seconds) for seconds in (20, 90, 3600, 7500)] == ["1 min", "2 min", "1 h 0 min", "2 h 5 min"]
