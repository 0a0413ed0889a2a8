"""How likely chance is, against counting, against a simulation, and against closed forms."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch

from memtrain.evaluation.stages.measure.chance import by_chance, let_through


@pytest.mark.parametrize(("heldout", "n", "allowed"), [(5, 3, 1), (4, 4, 2), (3, 3, 3)])
def test_it_is_the_share_of_orders(heldout: int, n: int, allowed: int) -> None:
    """Exchangeable prompts: every choice of places for the held-out ones among all is as likely."""
    choices = list(itertools.combinations(range(heldout + n), heldout))
    for k in range(n + 1):
        beyond = 0
        for places in choices:
            # The threshold is the a-th highest held-out value; places count from the highest.
            others_above = places[allowed - 1] - (allowed - 1)
            beyond += others_above >= k
        assert by_chance(k, n, allowed=allowed, heldout=heldout) == pytest.approx(float(Fraction(beyond, len(choices))))


def test_closed_forms_and_a_simulation() -> None:
    assert by_chance(1, 1, allowed=1, heldout=60) == pytest.approx(1 / 61)
    assert by_chance(2, 14, allowed=1, heldout=60) == pytest.approx(14 * 13 / (74 * 73))
    values = torch.rand(20000, 30 + 10)
    thresholds = values[:, :30].topk(2).values[:, 1]
    share = ((values[:, 30:] > thresholds[:, None]).sum(dim=1) >= 3).double().mean()
    assert by_chance(3, 10, allowed=2, heldout=30) == pytest.approx(float(share), abs=0.005)


def test_what_says_nothing_is_no_proof() -> None:
    assert by_chance(0, 9, allowed=1, heldout=9) == 1
    assert by_chance(9, 9, allowed=10, heldout=9) == 1
    assert (let_through(0.05, 60), let_through(1 / 61, 60), let_through(0.001, 60)) == (3, 1, 1)
