"""The order of a stream of shards: every sample once, a function of seed and epoch, and the same after any stop."""

import random
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.data import shard_feed
from memtrain.data.shard_feed import ShardFeed, on_paper
from memtrain.data.shard_reading import Raw
from memtrain.data.stream_place import Place, Share
from memtrain.errors import DataError

FEW = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def read(monkeypatch):
    """Shards named `name:count` or `name:count!`, which fails behind its last sample; says what was read."""
    read = []

    def samples(url, *, keys):
        name, _, number = url.partition(":")
        for index in range(int(number.rstrip("!"))):
            read.append((url, index))
            yield Raw(f"{name}{index}", "a caption", b"", url)
        if number.endswith("!"):
            raise DataError(f"{name} is cut")

    monkeypatch.setattr(shard_feed, "shard_samples", samples)
    return read


def keys(feed, *, epoch=0, share=None, place=None, most=None):
    drawn = feed.drawn(epoch, share or Share(), place or Place())
    found = []
    for raw in drawn:
        found.append(raw.key)
        if len(found) == most:
            break
    return found, drawn.place


def test_every_sample_comes_once_whoever_reads():
    urls = [f"{letter}:{count}" for letter, count in zip("abcdefg", (3, 0, 7, 1, 4, 4, 9), strict=True)]
    feed = ShardFeed(urls, seed=3, buffer=5)
    shares = [Share(rank, 2, worker, 3) for rank in range(2) for worker in range(3)]
    found = [key for share in shares for key in keys(feed, share=share)[0]]
    assert sorted(found) == sorted(f"{url[0]}{index}" for url in urls for index in range(int(url[2:])))


def test_the_order_is_that_of_seed_and_epoch():
    urls = [f"{letter}:6" for letter in "abcdef"]
    feed = ShardFeed(urls, seed=3, buffer=4)
    first = keys(feed)[0]
    assert first == keys(ShardFeed(urls, seed=3, buffer=4))[0]
    assert first != keys(feed, epoch=1)[0]
    assert first != keys(ShardFeed(urls, seed=4, buffer=4))[0]
    plain = keys(ShardFeed(urls, seed=3, buffer=0))[0]
    assert plain == [f"{letter}{index}" for letter in "abcdef" for index in range(6)]


@FEW
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    buffer=st.integers(0, 12),
    endless=st.booleans(),
    stop=st.integers(0, 40),
    again=st.integers(0, 10),
)
def test_a_draw_goes_on_as_if_it_had_not_stopped(counts, buffer, endless, stop, again):
    counts = [*counts, 2]
    urls = [f"{chr(97 + number)}:{count}" for number, count in enumerate(counts)]
    feed = ShardFeed(urls, seed=1, buffer=buffer, endless=endless)
    whole = keys(feed, most=60)[0]
    assert len(whole) == (60 if endless else sum(counts))
    assert len(set(whole[: sum(counts)])) == sum(counts), "nobody comes twice before everybody came"
    with patch.object(shard_feed.log, "warning") as warned:
        done, place = keys(feed, most=stop) if stop else ([], Place())
        more, later = keys(feed, place=place, most=again) if again else ([], place)
        rest = keys(feed, place=later, most=60)[0]
    assert [*done, *more, *rest][:60] == whole
    assert later.draws == len(done) + len(more)
    assert not warned.called


def test_only_shards_with_samples_in_the_buffer_are_read_again(read):
    urls = [f"{letter}:50" for letter in "abcdefgh"]
    feed = ShardFeed(urls, seed=1, buffer=3)
    _, place = keys(feed, most=320)
    read.clear()
    keys(feed, place=place, most=1)
    assert len({url for url, _ in read}) <= 2
    assert place.counts == (50,) * 6


def test_who_is_through_begins_again():
    feed = ShardFeed(["a:3", "b:4", "c:2"], seed=1, buffer=4, endless=True)
    found = keys(feed, most=18)[0]
    assert sorted(found[:9]) == sorted(found[9:]) == ["a0", "a1", "a2", "b0", "b1", "b2", "b3", "c0", "c1"]
    assert found[:9] != found[9:]
    with pytest.raises(DataError, match="None of the 1 shards"):
        keys(ShardFeed(["a:0"], seed=1, buffer=4, endless=True))


def test_a_shard_that_breaks_off_is_told_of_and_left():
    feed = ShardFeed(["a:3", "b:2!", "c:2"], seed=1, buffer=0, skip=True)
    drawn = list(feed.drawn(0, Share(), Place()))
    assert [raw.key for raw in drawn] == ["a0", "a1", "a2", "b0", "b1", "", "c0", "c1"]
    assert drawn[5].problem == "b is cut"
    with pytest.raises(DataError, match="b is cut"):
        keys(ShardFeed(["a:3", "b:2!", "c:2"], seed=1, buffer=0))
    with pytest.raises(DataError, match="None of the 2 shards"):
        keys(ShardFeed(["a:0!", "b:0!"], seed=1, buffer=0, skip=True, endless=True), most=90)


def test_shards_that_hold_something_else_are_told_of(caplog):
    _, place = keys(ShardFeed(["a:9", "b:9"], seed=1, buffer=4), most=6)
    keys(ShardFeed(["x:9", "y:9"], seed=1, buffer=4), place=place)
    assert "now hold other samples" in caplog.text


def test_names_that_begin_anew_in_each_shard_are_refused():
    feed = ShardFeed(["a:3", "a:4"], seed=1, buffer=0)
    with pytest.raises(DataError, match="keys shard"):
        keys(feed)
    assert len(keys(ShardFeed(["a:3"], seed=1, buffer=0, endless=True), most=9)[0]) == 9


def test_what_a_buffer_held_is_known_on_paper():
    held, begun = on_paper([2], 3, buffer=2, own=2, endless=False, generator=random.Random(0))
    assert len(held) == 1 and begun == (1, 2)
    assert on_paper([2], 0, buffer=2, own=2, endless=False, generator=random.Random(0)) == ([], (0, 0))
