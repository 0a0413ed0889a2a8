"""The held-out split: whole pictures, in an order that depends on keys alone."""

import pytest

from memtrain.data.heldout_split import HELDOUT_AT_LEAST, Split, split_heldout
from memtrain.errors import ConfigurationError
from memtrain.families.table import Families

KEYS = [f"sample {index}" for index in range(400)]


def test_split_is_a_partition_of_the_asked_size():
    split = split_heldout(KEYS, 0.1)
    train, held = split.train, split.heldout
    assert len(held) == 40
    assert sorted(train + held) == list(range(400))
    assert train == sorted(train)
    assert held == sorted(held)


def test_split_does_not_depend_on_the_order_of_samples():
    reordered = KEYS[::-1]
    expected = {KEYS[index] for index in split_heldout(KEYS, 0.1).heldout}
    assert {reordered[index] for index in split_heldout(reordered, 0.1).heldout} == expected


def test_held_out_samples_stay_held_out_when_samples_are_added():
    more = [f"new {index}" for index in range(20)] + KEYS
    before = {KEYS[index] for index in split_heldout(KEYS, 0.1).heldout}
    after = {more[index] for index in split_heldout(more, 0.1).heldout}
    assert len(before - after) <= 4
    assert any(key.startswith("new") for key in after)


def test_split_is_the_same_on_every_machine():
    assert split_heldout([f"k{index}" for index in range(8)], 0.3).heldout == [1, 2]


def test_small_sources_keep_a_minimum_held_out():
    assert len(split_heldout(KEYS[:100], 0.01).heldout) == HELDOUT_AT_LEAST
    assert len(split_heldout(KEYS[:12], 0.01).heldout) == 4


def test_nothing_is_held_out_at_fraction_zero():
    assert split_heldout(KEYS, 0.0) == Split(list(range(400)), [], [])


@pytest.mark.parametrize("fraction", [-0.1, 0.95, float("nan")])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ConfigurationError, match=r"heldout_fraction=.*[\s\S]*a share from 0 to 0\.9"):
        split_heldout(KEYS, fraction)


def test_fraction_that_leaves_nothing_to_train_on():
    with pytest.raises(ConfigurationError, match=r"holds out all of 2 picture\(s\)"):
        split_heldout(KEYS[:2], 0.9)


def copies(pictures: int, files: int) -> tuple[list[str], dict[str, str]]:
    """Keys of pictures with several files each, and the picture of each key."""
    names = {f"{number}-{file}": f"{number}-0" for number in range(pictures) for file in range(files)}
    return list(names), names


def test_a_picture_is_on_one_side_with_all_its_files():
    keys, pictures = copies(100, 5)
    split = split_heldout(keys, 0.1, families=Families(pictures))
    held = {pictures[keys[index]] for index in split.heldout}
    # One file of each of 16 pictures, the least that is held out; the other files are on neither side.
    assert len(split.heldout) == len(held) == HELDOUT_AT_LEAST
    assert len(split.aside) == 4 * HELDOUT_AT_LEAST
    assert not held & {pictures[keys[index]] for index in split.train}
    assert sorted(split.train + split.heldout + split.aside) == list(range(500))


def test_pictures_of_many_files_are_not_held_out_more_often_than_others():
    shares = []
    for salt in range(20):
        names = {f"{salt} large {n}-{m}": f"{salt} large {n}-0" for n in range(100) for m in range(50)}
        keys = [*names, *(f"{salt} single {number}" for number in range(100))]
        split = split_heldout(keys, 0.2, families=Families(names))
        shares.append(sum("large" in keys[index] for index in split.heldout) / len(split.heldout))
    # 40 pictures in 20 draws: the standard error of the share is 0.018.
    assert abs(sum(shares) / 20 - 0.5) < 0.06


def test_pictures_that_share_a_caption_stay_together():
    captions = {f"sample {index}": f"sample {index - index % 4}" for index in range(400)}
    split = split_heldout(KEYS, 0.1, families=Families({}, captions))
    held = {KEYS[index] for index in split.heldout}
    assert len(held) == 40
    assert {captions[key] for key in held}.isdisjoint(captions[KEYS[index]] for index in split.train)


def test_a_caption_of_most_pictures_keeps_nothing_together():
    captions = dict.fromkeys(KEYS[:300], KEYS[0])
    split = split_heldout(KEYS, 0.1, families=Families({}, captions))
    assert split == split_heldout(KEYS, 0.1)


def test_captions_that_chain_all_pictures_do_not_prevent_a_split():
    pictures = {f"{number}-{side}": f"{number}-0" for number in range(300) for side in (0, 1)}
    keys = list(pictures)
    captions = {f"{number}-1": f"{number}-1" for number in range(300)}
    captions |= {f"{number + 1}-0": f"{number}-1" for number in range(299)}
    split = split_heldout(keys, 0.1, families=Families(pictures, captions))
    assert len(split.heldout) == 30


def test_families_of_one_change_nothing():
    assert split_heldout(KEYS, 0.1, families=Families()) == split_heldout(KEYS, 0.1)


def test_of_many_pictures_no_more_are_held_out_than_say_anything(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        split = split_heldout(KEYS, 0.1, most=25)
    assert len(split.heldout) == 25
    assert sorted(split.train + split.heldout) == list(range(400))
    assert "25 pictures are held out, not the 40" in caplog.text
    assert set(split.heldout) < set(split_heldout(KEYS, 0.1).heldout), "the first in the order of the hash"
    assert split_heldout(KEYS, 0.1, most=40) == split_heldout(KEYS, 0.1)
    with pytest.raises(ConfigurationError, match="heldout_most=0"):
        split_heldout(KEYS, 0.1, most=0)
