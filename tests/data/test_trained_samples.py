"""Samples of a checkpoint are known again by their keys: in another order, and without those that are left out."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.data.source import Sample
from memtrain.data.trained_samples import number_of, plain_options, positions_since, trained_samples
from memtrain.errors import ConfigurationError


def data(keys, visits, *, captions=None, rotating=()):
    captions = captions or {}
    return SimpleNamespace(
        samples=[Sample(key, captions.get(key, f"a {key}")) for key in keys],
        visits=[visits[key] for key in keys],
        rotating=frozenset(rotating),
    )


def positions(dataset):
    """Key and number of the visit at each position."""
    return [
        (one.key, number) for one, count in zip(dataset.samples, dataset.visits, strict=True) for number in range(count)
    ]


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=12),
    left_out=st.sets(st.integers(0, 11), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_each_visit_is_found_again_or_left_out(counts, left_out, order):
    visits = {f"{number}.png": count for number, count in enumerate(counts)}
    was = data(list(visits), visits)
    excluded = {f"{number}.png" for number in left_out} & visits.keys()
    kept = [key for key in visits if key not in excluded]
    order.shuffle(kept)
    now = data(kept, visits)
    moved = positions_since(trained_samples(was), now, excluded=excluded)
    if moved is None:
        assert kept == list(visits)
        return
    after = positions(now)
    for visit, place in zip(positions(was), moved.tolist(), strict=True):
        assert (visit[0] in excluded) if place < 0 else after[place] == visit
    assert sorted(place for place in moved.tolist() if place >= 0) == list(range(len(after)))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (data(["a", "b", "c"], {"a": 1, "b": 2, "c": 1}), "0 are missing, and 1 are new, first 'c'"),
        (data(["a"], {"a": 1}), "1 are missing, and 0 are new"),
        (data(["a", "b"], {"a": 1, "b": 2}, captions={"b": "another"}), "1 of 2 samples have another caption"),
        (data(["a", "b"], {"a": 3, "b": 2}), "1 of 2 samples have another number of visits per epoch"),
    ],
)
def test_other_data_are_refused_by_what_they_are(now, message):
    saved = trained_samples(data(["a", "b"], {"a": 1, "b": 2}))
    with pytest.raises(ConfigurationError, match=message):
        positions_since(saved, now)


def test_made_samples_of_an_excluded_one_may_be_missing():
    visits = {"a": 1, "a#caption3": 1, "b": 1}
    moved = positions_since(trained_samples(data(list(visits), visits)), data(["b"], visits), excluded=["a"])
    assert torch.equal(moved, torch.tensor([-1, -1, 0]))


def test_regularisation_images_may_share_otherwise_what_is_left_to_them():
    visits = {"a": 1, "regular": 3}
    now = data(["a", "regular"], {"a": 1, "regular": 2}, rotating=[1])
    moved = positions_since(trained_samples(data(list(visits), visits)), now)
    assert moved.tolist() == [0, 1, 2, -1]


def test_numbers_are_of_every_text_and_options_without_their_paths():
    assert number_of("\ud800") != number_of("") == number_of("")
    assert plain_options(Sample("k", "c"))["key"] == "k"
