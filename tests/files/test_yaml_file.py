"""YAML of plain values: what is written comes back, and any other text is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some

from memtrain.errors import ConfigurationError
from memtrain.files.yaml_file import MOST_DEPTH, read_mapping, read_yaml, yaml_of

TEXT = some.text(some.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")), max_size=8)
PLAIN = some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = some.recursive(
    PLAIN, lambda inner: some.lists(inner, max_size=4) | some.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_what_is_written_is_read_again(value: Any) -> None:
    assert yaml_of(yaml.safe_dump(value, allow_unicode=True), "a.yaml") == value


@settings(max_examples=150, deadline=None)
@given(some.text(some.sampled_from("ab:-[]{}&*!<>|?#'\"%@ \n\t0.~é\x85\u2028"), max_size=40))
def test_any_text_is_a_value_or_refused(text: str) -> None:
    said = "a.yaml is refused\n  Expected: YAML\n  Remedy: mend it"
    try:
        yaml_of(text, "a.yaml")
    except ConfigurationError as error:
        said = str(error)
    assert said.startswith("a.yaml ")
    assert len(said.splitlines()) == 3


def test_aliases_of_a_few_values_stand_for_them() -> None:
    text = "base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}\nsame: [*base, *base]\n"
    assert yaml_of(text, "a.yaml")["other"] == {"a": 1, "b": 3}
    assert yaml_of(text, "a.yaml")["same"] == [{"a": 1, "b": 2}] * 2


def test_depth_has_a_limit_and_ends_there() -> None:
    deep = MOST_DEPTH - 1
    assert yaml_of("[" * deep + "]" * deep, "a.yaml") is not None
    with pytest.raises(ConfigurationError, match="nested too deep"):
        yaml_of("[" * (deep + 1) + "]" * (deep + 1), "a.yaml")


def test_a_key_may_stand_in_two_mappings() -> None:
    assert yaml_of("- {a: 1}\n- {a: 2}\n- b: {a: 3}\n  a: 4\n", "a.yaml")[2] == {"b": {"a": 3}, "a": 4}


def test_folders_and_devices_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a folder"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigurationError, match="is not a plain file"):
        read_mapping(Path("/dev/null"))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_yaml(tmp_path / "nowhere.yaml")
