"""The contract of continuing: its table in words, and what is said and refused."""

import re

import pytest

from memtrain.errors import ConfigurationError
from memtrain.files.resume_contract import RULES, check_settings, plain, shown
from tests.conftest import ROOT

ROWS = [line for line in (ROOT / "docs" / "resume.md").read_text().splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("name", RULES)
def test_the_table_in_words_says_the_same(name):
    rows = [cells for line in ROWS if f"`{name}`" in (cells := line.split("|"))[2]]
    assert rows, f"docs/resume.md has no row for {name}"
    for cells in rows:
        assert cells[3].strip().startswith("refused" if RULES[name].remedy else "continues, and says so")


def test_the_table_names_no_other_setting():
    named = {name for line in ROWS for name in re.findall(r"`(\w+)`", line.split("|")[2])}
    assert named - RULES.keys() == {"data"}


def test_a_refusal_names_the_setting_both_values_and_the_remedy():
    with pytest.raises(ConfigurationError) as caught:
        check_settings({"learning_rate": 1e-3}, {"learning_rate": 5e-4})
    assert "learning_rate: the checkpoint was trained with 0.001, this run has 0.0005" in caught.value.problem
    assert "Remedy: set it back, or begin a new run" in str(caught.value)


def test_what_may_differ_is_said_and_what_is_not_known_is_not_compared():
    notes = check_settings({"batch_size": 4, "seed": 1}, {"batch_size": 2, "seed": 1, "processes": 3})
    assert notes == ["batch_size was 4, and is 2 now: the rest of the epoch is visited in other batches"]
    assert check_settings({}, {"learning_rate": 1.0}) == []


def test_settings_are_compared_as_a_checkpoint_holds_them():
    assert plain({"a": (1, 2), "b": None}) == {"a": [1, 2], "b": None}
    assert check_settings({"buckets": [1, 2]}, {"buckets": (1, 2)}) == []
    assert shown("\x1b[31mred") == '"\\u001b[31mred"'
    assert len(shown("x" * 1000)) < 130
