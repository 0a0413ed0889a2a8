"""A sample of many samples: who is in it, and how far what it says of all is off."""

from __future__ import annotations

import math

import pytest
import torch

from memtrain.evidence import reservoir
from memtrain.evidence.reservoir import Reservoir, place, threshold_error
from memtrain.evidence.running_means import Evidence
from memtrain.functional.statistics import robust_threshold

NAMES = [f"{index:05d}" for index in range(400)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """A reservoir that is full soon."""
    monkeypatch.setattr(reservoir, "MOST", 50)
    return 50


def lowest(names: list[str], count: int) -> set[str]:
    return set(sorted(names, key=place)[:count])


def visit(evidence: Evidence, names: list[str]) -> None:
    values = torch.zeros(len(names), 1)
    evidence.add(evidence.rows(names), values, values)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_holds_the_lowest_places_whatever_the_order_of_visits(few: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    evidence = Evidence(1)
    asked = False
    for part in torch.randperm(800, generator=generator).split(37):
        visit(evidence, [NAMES[row % 400] for row in part.tolist()])
        if len(evidence.names) > few and not asked:
            asked = bool(len(evidence.sample(2)) + 1)
    assert {evidence.names[row] for row in evidence.sample(2).tolist()} == lowest(NAMES, few)
    assert evidence.sample(2).tolist() == sorted(evidence.sample(2).tolist())


def test_up_to_its_size_it_is_all_and_then_those_with_visits_enough(few: int) -> None:
    evidence = Evidence(1)
    visit(evidence, NAMES[:few])
    assert evidence.sample(2).tolist() == list(range(few)), "also those with fewer visits"
    visit(evidence, NAMES[few : 2 * few])
    visit(evidence, NAMES[:10])
    assert {evidence.names[row] for row in evidence.sample(2).tolist()} == set(NAMES[:10])
    assert {evidence.names[row] for row in evidence.sample(1).tolist()} == lowest(NAMES[: 2 * few], few)


def test_what_goes_is_replaced_by_nobody_who_was_turned_away_before(few: int) -> None:
    found = Reservoir(1)
    places = torch.tensor([place(name) for name in NAMES])
    found.offer(torch.arange(400), places)
    gone, moved = found.rows[:2].tolist()
    found.remove(gone, last=399)
    assert gone not in found.rows.tolist() and len(found.rows) == few - 1
    found.remove(5 if moved != 5 else 6, last=moved)
    expected = 5 if moved != 5 else 6
    assert expected in found.rows.tolist() and moved not in found.rows.tolist()
    before = found.rows
    turned_away = torch.tensor([row for row in range(400) if NAMES[row] not in lowest(NAMES, few)])
    found.offer(turned_away, places[turned_away])
    assert torch.equal(found.rows, before)


def test_two_of_them_merge_into_that_of_all(few: int) -> None:
    places = torch.tensor([place(name) for name in NAMES])
    whole, first, second = Reservoir(1), Reservoir(1), Reservoir(1)
    whole.offer(torch.arange(400), places)
    first.offer(torch.arange(250), places[:250])
    second.offer(torch.arange(250, 400), places[250:])
    first.offer(second.rows, places[second.rows])
    assert torch.equal(first.rows, whole.rows)


@pytest.mark.parametrize(("rate", "freedom"), [(0.01, math.inf), (0.001, math.inf), (0.01, 5.0)])
def test_the_threshold_of_a_sample_is_off_by_its_stated_error(rate: float, freedom: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(60_000, generator=generator, dtype=torch.float64)
    whole = robust_threshold(scores, rate, upper=True, freedom=freedom)
    errors = torch.tensor(
        [
            robust_threshold(
                scores[torch.randperm(60_000, generator=generator)[:1024]], rate, upper=True, freedom=freedom
            )
            - whole
            for _ in range(120)
        ]
    )
    stated = threshold_error(rate, 1024, freedom=freedom)
    assert errors.square().mean().sqrt().item() == pytest.approx(stated, rel=0.2)
    assert float(errors.abs().max()) < 4 * stated
    assert threshold_error(0.01, reservoir.MOST) == pytest.approx(0.043, abs=0.001), "as its card says"
