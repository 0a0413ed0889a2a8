"""Batches of workers that take turns: the order is theirs, whoever is through first, and goes on after any batch."""

import pytest
import torch

from memtrain.data.shard_reading import Raw
from memtrain.data.stream_loader import Begin, Stream, StreamLoader, Turn
from memtrain.data.stream_place import Place, Share
from memtrain.errors import DataError

from ..conftest import encoded_image


class Numbers:
    """A worker's samples are so many numbers; those in `bad` cannot be decoded."""

    def __init__(self, counts, *, bad=()):
        self.counts, self.bad = counts, bad

    def drawn(self, epoch, share, place):
        return Drawn(self, share, place)


class Drawn:
    def __init__(self, feed, share: Share, place: Place):
        self.feed, self.share, self.draws = feed, share, place.draws

    @property
    def place(self):
        return Place(self.draws)

    def __iter__(self):
        while self.draws < self.feed.counts[self.share.part]:
            key = f"{self.share.part}-{self.draws}"
            self.draws += 1
            content = b"no image" if key in self.feed.bad else encoded_image(1)
            yield Raw(key, "a caption", content, "a shard", "it is bad" if key.endswith("-99") else "")


def loader(counts, *, workers, begin=None, skip=False, bad=(), batches=None, **options):
    stream = Stream(Numbers(counts, bad=bad), batch_size=2, resolution=8, tokens=None, skip=skip, **options)
    made = StreamLoader(stream, num_workers=workers, batches=batches)
    made.begin = lambda epoch: begin or Begin(epoch)
    return made


def keys(made):
    return [batch["key"] for batch in made]


WHOLE = [["0-0", "0-1"], ["1-0", "1-1"], ["0-2", "0-3"], ["0-4", "0-5"]]


def test_workers_take_turns_and_go_on_after_any_batch():
    made = loader([7, 3], workers=2)
    iterator = iter(made)
    assert next(iterator)["pixel_values"].shape == (2, 3, 8, 8)
    found, at = [WHOLE[0]], Begin().after(made.given.popleft(), workers=2)
    for done in range(1, 4):
        found.append(next(iterator)["key"])
        if done in (1, 3):
            assert keys(loader([7, 3], workers=2, begin=at)) == WHOLE[done:], at
        at = at.after(made.given.popleft(), workers=2)
    assert found == WHOLE
    assert next(iterator, None) is None
    assert at == Begin(0, (Place(6), Place(2)), 1, 4)


def test_one_process_without_workers():
    made = loader([5], workers=0, begin=Begin(2, (Place(2),), 0, 1))
    assert keys(made) == [["0-2", "0-3"]]
    assert list(made.given) == [Turn(0, place=Place(4))]
    assert len(keys(loader([50], workers=0, batches=3))) == 3
    assert len(keys(loader([50], workers=0, batches=3, begin=Begin(0, (Place(4),), 0, 2)))) == 1
    assert keys(loader([50], workers=0, batches=3, begin=Begin(0, (Place(6),), 0, 3))) == []
    assert keys(loader([9, 2], workers=0, rank=1, processes=2)) == [["1-0", "1-1"]]


def test_what_cannot_be_used_stops_the_run_or_is_told_of():
    with pytest.raises(DataError, match=r"sample '0-1'[\s\S]*cannot be read"):
        keys(loader([5], workers=0, bad={"0-1"}))
    told = []
    made = loader([101], workers=0, bad={"0-1"}, skip=True, begin=Begin(0, (Place(0),), 0, 0))
    made.report = lambda broken, given: told.append((broken, given))
    found = keys(made)
    assert found[0] == ["0-0", "0-2"] and ["0-98", "0-99"] not in found
    reason = next(one[2] for broken, _ in told for one in broken if one[0] == "0-99")
    assert "it is bad" in reason
    assert [one[:2] for one in told[0][0]] == [("0-1", "a shard")]
    assert sum(given for _, given in told) == 98, "99 usable samples, the last alone in its batch"


def test_less_than_a_batch_is_no_epoch():
    with pytest.raises(DataError, match="less than one batch of 2"):
        keys(loader([1], workers=0))


def test_fields_of_captions():
    stream = Stream(Numbers([2]), batch_size=2, resolution=8, tokens=lambda texts: {"input_ids": torch.ones(1, 3)})
    (batch,) = StreamLoader(stream)
    assert batch["input_ids"].shape == (2, 3)
