"""The held-out split and planted duplicates."""

import hashlib
from pathlib import Path

import pytest

from memtrain.data.selection import (
    Duplicates,
    choose_templates,
    plant,
    read_keys,
)
from memtrain.errors import ConfigurationError, DataError

KEYS = [f"sample {index}" for index in range(400)]


def test_planted_samples_are_visited_as_often_as_asked():
    train = list(range(0, 400, 2))
    visits = plant(train, KEYS, Duplicates(count=5, repeats=30))
    assert list(visits) == train
    assert sorted(visits.values()) == [1] * 195 + [30] * 5


def test_seed_chooses_the_planted_samples():
    def chosen(seed):
        visits = plant(range(400), KEYS, Duplicates(count=10, seed=seed))
        return {index for index, count in visits.items() if count > 1}

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)
    assert len(chosen(1)) == 10


def test_nothing_is_planted_by_default():
    assert set(plant(range(9), KEYS, Duplicates()).values()) == {1}


def test_named_samples_are_planted():
    visits = plant(range(9), KEYS, Duplicates(keys=("sample 3", "sample 7"), repeats=4))
    assert [index for index, count in visits.items() if count == 4] == [3, 7]


def test_named_sample_that_is_not_trained_on():
    with pytest.raises(DataError, match=r"1 key\(s\) are not training samples, first \['sample 9'\]"):
        plant(range(9), KEYS, Duplicates(keys=("sample 3", "sample 9")))


def test_more_duplicates_than_samples():
    with pytest.raises(DataError, match="10 duplicates are asked for, but there are only 9 training samples"):
        plant(range(9), KEYS, Duplicates(count=10))


@pytest.mark.parametrize(
    "settings",
    [
        {"count": -1},
        {"count": 3, "repeats": 1},
        {"count": 3, "repeats": (50, 1)},
        {"count": 3, "repeats": ()},
        {"varied_captions": -1},
        {"varied_images": -2},
    ],
)
def test_settings_that_plant_nothing(settings):
    with pytest.raises(ConfigurationError, match=r"plants nothing[\s\S]*remove data\.init_args\.duplicates"):
        Duplicates(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"repeats": (50, 50)}, "distinct numbers of repeats"),
        ({"repeats": (10, 50), "keys": ("a", "b", "c")}, r"3 keys and repeats=\(10, 50\)[\s\S]*as many keys for each"),
        ({"varied_captions": 1, "variants": 1}, "2 to 100 variants"),
        ({"varied_images": 1, "variants": 101, "repeats": 200}, "2 to 100 variants"),
        ({"varied_images": 1, "variants": 10, "repeats": (5, 9)}, "so that each is visited"),
    ],
)
def test_settings_that_contradict_each_other(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        Duplicates(**settings)


def test_several_doses_repeat_as_many_images_at_each():
    visits = plant(range(400), KEYS, Duplicates(count=3, repeats=(30, 5, 90)))
    assert sorted(visits.values()) == [1] * 391 + [5] * 3 + [30] * 3 + [90] * 3


def test_named_samples_are_dealt_out_to_doses_in_their_order():
    duplicates = Duplicates(keys=("sample 7", "sample 3", "sample 1", "sample 8"), repeats=(4, 9))
    visits = plant(range(9), KEYS, duplicates)
    assert {index: count for index, count in visits.items() if count > 1} == {7: 4, 3: 4, 1: 9, 8: 9}


def test_first_dose_and_plain_duplicates_choose_the_same_images():
    """Expected indices were computed from the definition alone: the first by sha256 of salt and key."""
    first = sorted(range(400), key=lambda i: hashlib.sha256(f"duplicates 0\0{KEYS[i]}".encode()).hexdigest())[:4]
    for settings in ({}, {"repeats": (100, 7)}, {"varied_captions": 5, "varied_images": 2}):
        visits = plant(range(400), KEYS, Duplicates(count=4, **settings))
        assert {index for index, count in visits.items() if count == 100} == set(first), settings


def test_templates_are_other_samples_and_leave_the_plain_ones():
    duplicates = Duplicates(count=4, repeats=(20, 40), varied_captions=3, varied_images=2)
    visits, templates = plant(range(400), KEYS, duplicates), choose_templates(range(400), KEYS, duplicates)
    assert sorted(templates.values()) == ["varied_captions"] * 3 + ["varied_images"] * 2
    assert set(visits) | set(templates) == set(range(400))
    assert not set(visits) & set(templates)
    named = choose_templates(range(9), KEYS, Duplicates(keys=("sample 2", "sample 5"), varied_images=7))
    assert set(named) == set(range(9)) - {2, 5}


def test_more_doses_and_templates_than_samples():
    with pytest.raises(DataError, match="10 duplicates are asked for, but there are only 9 training samples"):
        plant(range(9), KEYS, Duplicates(count=3, repeats=(10, 20), varied_captions=3, varied_images=1))


def test_keys_come_from_the_flagged_csv_of_an_earlier_run(tmp_path: Path) -> None:
    file = tmp_path / "flagged.csv"
    file.write_text('key,caption,visits\na.png,"one, two",3\n"b,c.png",x,4\n', encoding="utf-8")
    assert read_keys(str(file)) == {"a.png", "b,c.png"}
    file.write_text("name\na.png\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"has the columns \['name'\]"):
        read_keys(str(file))
    with pytest.raises(DataError, match="cannot be read"):
        read_keys(str(tmp_path / "nothing.csv"))
