"""Captions that are one: equal after normalisation, or by nearly all their words."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from memtrain.errors import ConfigurationError
from memtrain.families.captions import caption_families, jaccard, near_equal, normalise

LONG = "a photograph of the old lighthouse on the northern cliff at dawn with gulls above calm grey water"


@pytest.mark.parametrize(
    ("caption", "normal"),
    [
        ("A  Red\tFlag!", "a red flag"),
        ("ﬁne “quotes”, x²", "fine quotes x2"),
        ("STRASSE straße", "strasse strasse"),
        ("हिन्दी में", "हिन्दी में"),
        ("…", "..."),
        ("   ", ""),
    ],
)
def test_normalised(caption: str, normal: str) -> None:
    assert normalise(caption) == normal


def test_equal_captions_are_one_family_and_empty_ones_none() -> None:
    assert caption_families(["A dog.", "a cat", "a  DOG", "", " "]).tolist() == [0, 1, 0, 3, 4]


def test_one_word_of_many_may_differ() -> None:
    changed = LONG.replace("calm ", "")
    assert caption_families([LONG, "something else", changed]).tolist() == [0, 1, 0]
    assert caption_families([LONG, "something else", changed], level=None).tolist() == [0, 1, 2]


def test_templates_of_different_pictures_stay_apart() -> None:
    things = ["flag", "fish", "house", "tree", "cup", "drum"]
    captions = [f"clip art of a red {thing} in the style of the sixties" for thing in things]
    captions += ["a red flag", "a red fish"]
    assert caption_families(captions).tolist() == list(range(len(captions)))


def test_a_chain_of_near_equals_is_no_family() -> None:
    """Each sentence shares 19 of 21 words with the next; the ends share few."""
    words = [f"w{number}" for number in range(40)]
    captions = [" ".join(words[start : start + 20]) for start in range(0, 20)]
    names = caption_families(captions)
    for name in np.unique(names):
        members = [frozenset(captions[at].split()) for at in np.flatnonzero(names == name)]
        assert min(jaccard(a, b) for a, b in itertools.product(members, members)) > 0.6
    assert len(np.unique(names)) > 3


def test_the_index_misses_no_pair() -> None:
    chance = np.random.default_rng(0)
    words = [frozenset(map(str, chance.choice(14, chance.integers(4, 13), replace=False))) for _ in range(150)]
    long = [len(own) >= 6 for own in words]
    expected = {
        (a, b)
        for a, b in itertools.combinations(range(150), 2)
        if long[a] and long[b] and jaccard(words[a], words[b]) >= 0.8
    }
    pairs, similarity = near_equal(words, 0.8)
    assert len(expected) > 20
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert similarity.tolist() == pytest.approx([jaccard(words[a], words[b]) for a, b in pairs])


def test_twenty_thousand_templates_take_seconds() -> None:
    """With all pairs it would be minutes; the words of the template are in every caption."""
    chance = np.random.default_rng(0)
    captions = [
        f"clip art of a {a} in {b} and {c} by the {d}" for a, b, c, d in chance.integers(3000, size=(20_000, 4))
    ]
    began = time.process_time()
    assert len(np.unique(caption_families(captions))) == 20_000
    assert time.process_time() - began < 30


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="level"):
        caption_families(["a"], level=0.2)
