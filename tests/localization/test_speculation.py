"""Asking ahead changes nothing but how often and how much is asked at once."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pytest

from memtrain.localization.refinement import Refinement
from memtrain.localization.selection import Mask
from memtrain.localization.speculation import Below, follow


class Made:
    """Scores between 0 and 1 that depend on a mask in no orderly way, on three seeds."""

    def __init__(self, *, probes: bool, most: int) -> None:
        self.probes, self.most = probes, most
        self.known: dict[Mask, int] = {}
        self.calls, self.images = 0, 0

    def score(self, mask: Mask, seed: int) -> float:
        return zlib.crc32(repr((sorted(mask), seed)).encode()) / 2**32

    def answer(self, mask: Mask, below: Below) -> bool | None:
        count = self.known.get(mask, 0)
        highest = max([self.score(mask, seed) for seed in range(count)], default=-1.0)
        return below(highest) if count == 3 or not below(highest) else None

    def probed(self, mask: Mask) -> bool:
        return mask in self.known

    @property
    def room(self) -> int:
        return 3 * self.most

    def missing(self, mask: Mask) -> int:
        return 3 - self.known.get(mask, 0)

    def evaluate(self, masks: Sequence[Mask], *, probe: Sequence[Mask] = ()) -> None:
        images = sum(map(self.missing, masks)) + len(probe)
        assert 0 < images <= self.room
        assert self.probes or not probe
        assert not any(mask in self.known for mask in probe)
        self.calls, self.images = self.calls + 1, self.images + images
        self.known |= dict.fromkeys(probe, 1) | dict.fromkeys(masks, 3)


LISTS = tuple(tuple(range(layer, layer + 6)) for layer in range(4))


@pytest.mark.parametrize("probes", [False, True])
@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 0.9])
def test_the_path_is_that_of_one_question_at_a_time(threshold: float, probes: bool) -> None:
    def below(score: float) -> bool:
        return score < threshold

    alone = Made(probes=False, most=1)
    expected = follow(Refinement.begin(LISTS), alone, below=below, expected=0.8, worth=2.0)
    assert alone.images == 3 * alone.calls >= 12
    for most, worth in ((1, 2.0), (4, 0.5), (16, 0.1)):
        ahead = Made(probes=probes, most=most)
        found = follow(Refinement.begin(LISTS), ahead, below=below, expected=0.8, worth=worth)
        assert found.lists == expected.lists
        if most > 1 and not probes:
            assert ahead.calls < alone.calls or alone.calls == 4
            assert ahead.images >= alone.images
        if most == 1 and probes:
            assert ahead.images <= alone.images


def test_likely_answers_are_asked_for_in_one_call() -> None:
    scores = Made(probes=False, most=64)
    follow(Refinement.begin(LISTS), scores, below=lambda score: True, expected=0.99, worth=0.5)
    assert scores.calls == 1
    assert scores.images == 12


def test_nothing_is_asked_ahead_unless_it_is_worth_it() -> None:
    scores = Made(probes=True, most=64)
    follow(Refinement.begin(LISTS), scores, below=lambda score: score < 0.9, expected=0.8, worth=2.0)
    assert all(count in (1, 3) for count in scores.known.values())
    assert scores.images == sum(scores.known.values())
