"""What a stream leaves out: listed once each, and up to a share."""

import csv

import pytest

from memtrain.data.stream_broken import BrokenList
from memtrain.errors import DataError


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_everything_is_listed_once_also_by_a_run_that_goes_on(tmp_path, caplog):
    for _ in range(2):
        broken = BrokenList(tmp_path / "run", share=0.01)
        broken([], 100)
        broken([("a", "0.tar", "no\nimage"), ("=1+1", "0.tar", "cut")], 16)
        broken([("", "1.tar", "gone")], 0)
    assert rows(tmp_path / "run" / "broken.csv") == [
        ["key", "shard", "reason"],
        ["a", "0.tar", "no image"],
        ["'=1+1", "0.tar", "cut"],
        ["", "1.tar", "gone"],
    ]
    assert (broken.seen, broken.count) == (119, 3)
    assert caplog.text.count("Left out") == 6


def test_a_run_stops_beyond_the_share(tmp_path):
    broken = BrokenList(tmp_path, share=0.01)
    broken([(str(number), "a.tar", "cut") for number in range(10)], 0)
    with pytest.raises(DataError, match=r"11 of 27 samples[\s\S]*share of 0.01"):
        broken([("last", "a.tar", "cut")], 16)
    later = BrokenList(None, share=0.01)
    later([], 5000)
    later([(str(number), "a.tar", "cut") for number in range(50)], 0)
    with pytest.raises(DataError, match="5051"):
        later([("last", "a.tar", "cut")], 0)
