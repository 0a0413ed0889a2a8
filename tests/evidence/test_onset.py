"""When memorization began, in figures and sentences."""

from __future__ import annotations

import math

from memtrain.evidence.onset import onset_figures, onset_sentences, parting
from memtrain.evidence.set_curve import Point


def course(*, heldout: list[float], training: list[float]) -> list[Point]:
    return [
        Point(20 * (number + 1) - 1, one, other)
        for number, (one, other) in enumerate(zip(training, heldout, strict=True))
    ]


FALLING = [-0.2, -0.4, -0.6, -0.8, -1.0, -1.2, -1.35]


def test_both_part_where_the_held_out_loss_was_lowest() -> None:
    found = parting(course(training=FALLING, heldout=[-0.1, -0.3, -0.4, -0.2, 0.0, 0.2, 0.28]))
    assert found is not None and found.step == 59


def test_they_do_not_part_while_both_fall() -> None:
    assert parting(course(training=FALLING, heldout=FALLING)) is None
    assert parting([]) is None


def test_a_held_out_loss_that_only_rises_parts_from_the_start() -> None:
    found = parting(course(training=FALLING, heldout=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]))
    assert found is not None and found.step == 0


def test_the_sentence_of_a_small_set() -> None:
    points = course(training=FALLING, heldout=[-0.1, -0.3, -0.4, -0.2, 0.0, 0.2, 0.28])
    figures = onset_figures({"a": 70, "b": 64}, points)
    first, text = onset_sentences(figures, samples=12)
    assert first == "The first of them was flagged at step 64."
    assert "Loss on the 12 training images -74 % against the base model, on held-out images +32 %" in text
    assert "since step 59 only the former falls" in text
    assert "on edited copies of them" in onset_sentences(figures, samples=12, edited=True)[1]
    assert onset_sentences(figures, samples=5000) == [first], "in a large set the curve says little"


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert onset_sentences(onset_figures({}, []), samples=12) == []
    figures = onset_figures({}, [Point(4, -0.5, math.nan)])
    assert figures["curve"] == [{"step": 4, "training": -0.5, "heldout": None}]
    assert onset_sentences(figures, samples=12) == []
