"""The list of broken samples: what is counted, what is kept, and when it stops the run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from memtrain.data.broken import Broken, BrokenSamples
from memtrain.errors import ConfigurationError, DataError


def rows(folder: Path) -> list[list[str]]:
    with (folder / "broken.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_a_new_run_makes_the_list_anew_and_takes_an_old_one_away(tmp_path):
    one = BrokenSamples("skip", 0.5, tmp_path)
    one.add([Broken("a", "0.tar", "cut"), Broken("=b", "0.tar", "cut")])
    one.decide(10, path="data")
    assert rows(tmp_path) == [["key", "shard", "reason"], ["a", "0.tar", "cut"], ["'=b", "0.tar", "cut"]]
    BrokenSamples("skip", 0.5, tmp_path).decide(10, path="data")
    assert not (tmp_path / "broken.csv").exists()


def test_the_list_of_a_run_that_has_trained_stays(tmp_path):
    BrokenSamples("skip", 0.5, tmp_path).met([Broken("a", "0.tar", "cut")], 10, path="data")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    BrokenSamples("skip", 0.5, tmp_path).decide(10, path="data")
    assert [row[0] for row in rows(tmp_path)[1:]] == ["a"]


def test_a_run_that_goes_on_keeps_what_was_listed_and_lists_it_once(tmp_path):
    BrokenSamples("skip", 0.5, tmp_path).met([Broken("=a", "0.tar", "cut")], 10, path="data")
    later = BrokenSamples("skip", 0.5, tmp_path)
    later.goes_on = True
    later.add([Broken("b", "1.tar", "cut")])
    later.decide(10, path="data")
    later.met([Broken("=a", "0.tar", "cut")], 10, path="data")
    assert [row[0] for row in rows(tmp_path)[1:]] == ["'=a", "b"]


def test_what_another_process_listed_counts_too(tmp_path):
    for name in "ab":
        BrokenSamples("skip", 0.2, tmp_path).met([Broken(name, "", "cut")], 10, path="data")
    with pytest.raises(DataError, match=r"3 of 10 samples .* last 'c'"):
        BrokenSamples("skip", 0.2, tmp_path).met([Broken("c", "", "cut")], 10, path="data")


def test_a_shard_counts_as_the_samples_that_are_lost_with_it(tmp_path):
    lost = BrokenSamples("skip", 0.1, tmp_path)
    lost.add([Broken("", "0.tar", "gone", 10)])
    lost.decide(100, path="data")
    lost.add([Broken("a", "1.tar", "cut")])
    with pytest.raises(DataError, match="11 of 100"):
        lost.decide(100, path="data")


@pytest.mark.parametrize("settings", [("leave", 0.1), ("skip", 1.0), ("skip", -0.1)])
def test_settings_that_are_none_are_refused(settings):
    with pytest.raises(ConfigurationError, match="broken"):
        BrokenSamples(*settings)
