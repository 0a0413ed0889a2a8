"""Triggers, several captions, and shuffled tags."""

from collections import Counter

import pytest

from memtrain.data.caption_choice import Captions
from memtrain.data.source import Sample


def test_the_trigger_comes_before_every_caption_once():
    captions = Captions(trigger="sks dog")
    sample = captions.triggered(Sample("a", "in the snow", ("sks dog, asleep", "sks dog", "sks dogs run")))
    assert sample.caption == "sks dog, in the snow"
    assert sample.alternatives == ("sks dog, asleep", "sks dog", "sks dog, sks dogs run")
    assert Captions().triggered(sample) == sample


def test_random_captions_are_drawn_alike_often():
    captions = Captions(choose="random")
    drawn = Counter(captions.number(3, "1 key", epoch=epoch, visit=visit) for epoch in range(200) for visit in range(3))
    # Four standard deviations of a binomial distribution around 200.
    assert sorted(drawn) == [0, 1, 2]
    assert all(abs(count - 200) < 47 for count in drawn.values())
    assert Captions().number(3, "1 key", epoch=1, visit=0) == 0


@pytest.mark.parametrize("visits", [1, 2])
def test_shuffled_captions_are_all_seen_before_one_comes_again(visits):
    captions = Captions(choose="shuffle")
    drawn = [
        captions.number(4, "1 key", epoch=epoch, visit=visit, visits=visits)
        for epoch in range(40 // visits)
        for visit in range(visits)
    ]
    turns = [tuple(drawn[start : start + 4]) for start in range(0, 40, 4)]
    assert all(sorted(turn) == [0, 1, 2, 3] for turn in turns)
    assert len(set(turns)) > 5


def test_tags_change_places_but_for_the_first():
    captions = Captions(shuffle_tags=True, keep_tags=2)
    texts = {captions.shuffled("sks, dog, a ,b,  c", f"{number}") for number in range(60)}
    assert len(texts) == 6
    assert all(text.startswith("sks, dog, ") and sorted(text[10:].split(", ")) == ["a", "b", "c"] for text in texts)
    assert captions.shuffled("one tag", "x") == "one tag"
