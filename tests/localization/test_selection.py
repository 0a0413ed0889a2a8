"""Which candidates are tried, in which order, and where the search for them ends."""

from __future__ import annotations

import pytest
import torch

from memtrain.errors import ConfigurationError
from memtrain.localization.selection import Selection, candidates, mask_of
from memtrain.localization.settings import Settings

Z = [torch.tensor([0.5, 6.0, 2.0, 3.0]), torch.tensor([1.1, 0.0])]
ACTIVATION = [torch.tensor([4.0, 1.0, 3.0, 2.0]), torch.tensor([0.0, 5.0])]


def test_candidates_are_outliers_by_index_and_then_the_strongest() -> None:
    assert candidates(Z, ACTIVATION, theta=1.0, k=2) == ((1, 2, 3, 0, 2), (0, 1, 0))
    assert candidates(Z, ACTIVATION, theta=None, k=9) == ((0, 2, 3, 1), (1, 0))
    assert candidates(Z, ACTIVATION, theta=2.0, k=None) == ((1, 3), ())


def test_of_equally_active_neurons_the_first_are_candidates() -> None:
    """Dead neurons are all equal, and many."""
    activation = torch.zeros(500)
    activation[[400, 7]] = 1.0
    assert candidates([activation], [activation], theta=None, k=6) == ((7, 400, 0, 1, 2, 3),)


def test_a_mask_forgets_order_and_repetition() -> None:
    assert mask_of(((1, 2, 1), (0,))) == mask_of(((2, 1), (0, 0))) == {(0, 1), (0, 2), (1, 0)}


def test_theta_falls_and_k_grows_until_the_score_is_below() -> None:
    search = Selection.begin(Z, ACTIVATION, Settings())
    assert (search.theta, search.k, search.done) == (5.0, 0, False)
    search = search.after(False).after(False)
    assert (search.theta, search.k, search.done) == (4.5, 2, False)
    ended = search.after(True)
    assert ended.done and not ended.exhausted
    assert ended.hypothesis() == search.hypothesis()


def test_the_last_set_tried_has_theta_above_the_lowest() -> None:
    search, tried = Selection.begin(Z, ACTIVATION, Settings()), []
    while not search.done:
        tried.append((search.theta, search.k))
        search = search.after(False)
    assert tried[0] == (5.0, 0) and tried[-1] == (1.25, 15) and len(tried) == 16
    assert search.exhausted and (search.theta, search.k) == (1.25, 15)


def test_either_criterion_can_be_left_out() -> None:
    by_rank = Selection.begin(Z, ACTIVATION, Settings(initial_theta=None, most_k=3))
    steps = []
    while not by_rank.done:
        steps.append(by_rank.k)
        by_rank = by_rank.after(False)
    assert steps == [0, 1, 2] and by_rank.theta is None
    by_distance = Selection.begin(Z, ACTIVATION, Settings(initial_k=None, initial_theta=2.0, theta_step=0.5))
    assert by_distance.after(False).hypothesis() == ((1, 2, 3), ())
    assert by_distance.after(False).after(False).exhausted


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seeds": 1}, "seeds=1"),
        ({"call": 50}, "call=50"),
        ({"refinement": "best"}, "refinement='best'"),
        ({"initial_theta": None, "initial_k": None}, "neither"),
        ({"theta_step": 0.0}, "theta_step"),
        ({"sequential": True, "refinement": "binary_split"}, "binary_split"),
    ],
)
def test_settings_that_cannot_be_searched_with_are_refused(changes: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Settings(**changes)


def test_how_masks_are_evaluated_is_no_part_of_a_search() -> None:
    assert Settings.published().json() == Settings.published(sequential=False, dead_forwards=True).json()
    assert Settings.published().json() != Settings().json()
