"""Order and place of the resumable sampler, and the lazy loader."""

from itertools import chain

import pytest
import torch
from torch.utils.data import DistributedSampler

from memtrain.data.dataset import Visit
from memtrain.data.sampler import ResumableDistributedSampler, ResumableLoader

COUNT = 23


def order(place=None, *, ranks=1, rank=0, seed=0, count=COUNT, epoch=None):
    sampler = ResumableDistributedSampler(
        range(count), num_replicas=ranks, rank=rank, seed=seed, place=None if place is None else lambda: place
    )
    if epoch is not None:
        sampler.set_epoch(epoch)
    return list(sampler)


def test_order_is_that_of_torch():
    for epoch in range(3):
        torch_sampler = DistributedSampler(range(COUNT), num_replicas=2, rank=1, seed=5)
        torch_sampler.set_epoch(epoch)
        assert order(epoch=epoch, ranks=2, rank=1, seed=5) == list(torch_sampler)


@pytest.mark.parametrize("done", [0, 1, 7, 11, 12])
def test_resumed_epoch_is_the_rest_of_the_uninterrupted_one(done):
    for rank in range(2):
        full = order((3, 0), ranks=2, rank=rank)
        assert order((3, done), ranks=2, rank=rank) == full[done:]


def test_epoch_after_the_resumed_one_is_whole():
    place = (3, 20)
    sampler = ResumableDistributedSampler(range(COUNT), num_replicas=1, rank=0, seed=0, place=lambda: place)
    assert len(list(sampler)) == 3
    place = (4, 0)
    assert list(sampler) == order((4, 0))


def test_place_is_asked_when_the_first_sample_is():
    place = (0, 0)
    iterator = iter(ResumableDistributedSampler(range(COUNT), num_replicas=1, rank=0, seed=0, place=lambda: place))
    place = (2, 5)
    assert list(iterator) == order((2, 0))[5:]


def test_epoch_of_the_place_prevails():
    assert order((1, 0), epoch=9) == order((1, 0)) != order((9, 0))


def test_epochs_and_seeds_differ():
    assert order((0, 0)) != order((1, 0))
    assert order((0, 0)) != order((0, 0), seed=1)
    assert sorted(order((1, 0))) == list(range(COUNT))


@pytest.mark.parametrize("ranks", [2, 4])
def test_shards_of_the_ranks_are_disjoint_and_cover_everything(ranks):
    shards = [order((1, 0), ranks=ranks, rank=rank, count=24) for rank in range(ranks)]
    assert [len(shard) for shard in shards] == [24 // ranks] * ranks
    assert sorted(chain(*shards)) == list(range(24))


def test_ranks_of_an_uneven_dataset_repeat_as_little_as_possible():
    shards = [order((0, 0), ranks=4, rank=rank) for rank in range(4)]
    assert [len(shard) for shard in shards] == [6] * 4
    assert set(chain(*shards)) == set(range(COUNT))


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_starts_when_the_first_batch_is_asked_for(workers):
    place = (0, 0)
    sampler = ResumableDistributedSampler(range(COUNT), num_replicas=1, rank=0, seed=0, place=lambda: place)
    batches = iter(ResumableLoader(range(COUNT), sampler=sampler, batch_size=4, num_workers=workers))
    place = (1, 8)
    assert torch.cat(list(batches)).tolist() == order((1, 0))[8:]


def test_loader_has_no_state():
    loader = ResumableLoader(range(4))
    assert loader.state_dict() == {}
    loader.load_state_dict({})
    assert len(list(loader)) == 4


def test_where_visits_differ_they_are_named_with_their_epoch():
    class Varying(list):
        varies = True

    sampler = ResumableDistributedSampler(Varying(range(COUNT)), num_replicas=1, rank=0, seed=0, place=lambda: (3, 4))
    assert list(sampler) == [(position, 3) for position in order((3, 4))]
    assert all(isinstance(visit, Visit) for visit in sampler)
