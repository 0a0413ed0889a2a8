"""What a stream leaves out: listed once each, and up to a share."""

import csv

import pytest

from memtrain.data.broken import Broken
from memtrain.data.stream_broken import StreamBroken
from memtrain.errors import DataError


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def many(count, start=0):
    return [Broken(str(number), "a.tar", "cut") for number in range(start, start + count)]


def test_everything_is_listed_once_also_by_a_run_that_goes_on(tmp_path, caplog):
    for _ in range(2):
        broken = StreamBroken(tmp_path / "run", share=0.01)
        broken([], 100)
        broken([Broken("a", "0.tar", "no image"), Broken("=1+1", "0.tar", "cut")], 16)
        broken([Broken("", "1.tar", "gone")], 0)
    assert rows(tmp_path / "run" / "broken.csv") == [
        ["key", "shard", "reason"],
        ["a", "0.tar", "no image"],
        ["'=1+1", "0.tar", "cut"],
        ["", "1.tar", "gone"],
    ]
    assert broken.seen == 119
    assert caplog.text.count("Left out") == 3


def test_a_run_stops_beyond_the_share(tmp_path):
    broken = StreamBroken(tmp_path, share=0.01)
    broken(many(10), 0)
    with pytest.raises(DataError, match="11 of 1,000 samples"):
        broken(many(1, 10), 16)
    later = StreamBroken(None, share=0.01, processes=2)
    later([], 4000)
    later(many(80), 0)
    with pytest.raises(DataError, match="90 of 8,180 samples"):
        later(many(10, 80), 0)
