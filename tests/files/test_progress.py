"""Bars on a terminal, lines in a log, and nothing with `--quiet`."""

import io
import sys
import time
from contextlib import redirect_stderr

import pytest

from memtrain.files import progress
from memtrain.files.progress import no_progress, progress_bar, say_aside, until_done


class Clock:
    """A clock that only :func:`tick` moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "time", found)
    monkeypatch.setattr(progress.LogLines, "monitor_interval", 0)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return found


def worked(clock: Clock, *, items: int, seconds: float, initial: int = 0, disable: bool = False) -> str:
    """What is written while items are done in so many seconds each."""
    stream = io.StringIO()
    total = items + initial
    with redirect_stderr(stream):
        bar = progress_bar(total=total, desc="encoding latents", unit="batch", initial=initial, disable=disable)
        bar._time = clock
        bar.start_t = bar.last_print_t = clock.now
        with bar:
            for _ in range(items):
                clock.now += seconds
                bar.update()
    return stream.getvalue()


def test_a_log_gets_a_line_each_half_minute_and_one_at_the_end(clock: Clock) -> None:
    assert worked(clock, items=7, seconds=10).splitlines() == [
        "encoding latents: 3 of 7 batches, 00:30 so far, about 00:40 left",
        "encoding latents: 6 of 7 batches, 01:00 so far, about 00:10 left",
        "encoding latents: 7 of 7 batches, 01:10 so far",
    ]


def test_a_second_start_counts_what_the_first_did_but_not_its_time(clock: Clock) -> None:
    lines = worked(clock, items=5, seconds=15, initial=95).splitlines()
    assert lines[0] == "encoding latents: 97 of 100 batches, 00:30 so far, about 00:45 left"


def test_short_work_leaves_no_line(clock: Clock) -> None:
    assert worked(clock, items=7, seconds=1) == ""


def test_a_message_beside_a_bar_repeats_no_line(clock: Clock) -> None:
    stream = io.StringIO()
    with redirect_stderr(stream), progress_bar(total=3, desc="sampling", unit="image") as bar:
        bar._time = clock
        bar.start_t = bar.last_print_t = clock.now
        clock.now += 40
        bar.update()
        say_aside("Sampling 3 images")
    assert stream.getvalue().splitlines() == [
        "sampling: 1 of 3 images, 00:40 so far, about 01:20 left",
        "Sampling 3 images",
    ]


def test_quiet_leaves_no_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with no_progress():
        assert worked(clock, items=7, seconds=10) == ""
        say_aside("Sampling goes on")
    assert worked(clock, items=7, seconds=10, disable=True) == ""
    assert capsys.readouterr().err == ""
    say_aside("Sampling goes on")
    assert capsys.readouterr().err == "Sampling goes on\n"


def test_a_terminal_gets_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert list(progress_bar(range(3), "scanning", 3, unit="image")) == [0, 1, 2]
    said = stream.getvalue()
    assert "scanning: 100%" in said
    assert "3/3" in said


def test_time_left_is_by_what_this_start_did() -> None:
    said = until_done("step", 90, 100, seconds=60, done=30)
    assert said == "step 90 of 100, 01:00 so far, about 00:20 left"
    assert until_done("", 5, None, seconds=60, done=5, unit="images") == "5 images, 01:00 so far"
