"""Batches of one shape: on all processes, without losing a visit for good, and resumed exactly."""

from collections import Counter

import pytest

from memtrain.data.bucket_sampler import BatchPlan, BucketSampler

SHAPES = [(8, 16)] * 7 + [(8, 8)] * 13 + [(16, 8)] * 5


def visits(number, *, size=4, seed=0):
    return BatchPlan(SHAPES, size=size, seed=seed).batch(number)


class Shaped:
    """What the sampler asks of a dataset."""

    def __len__(self):
        return len(SHAPES)

    def shapes_of_visits(self):
        return SHAPES


def sampler(*, ranks=1, rank=0, place=None):
    return BucketSampler(Shaped(), num_replicas=ranks, rank=rank, batch_size=2, seed=0, place=place)


def test_every_batch_is_of_one_shape():
    plan = BatchPlan(SHAPES, size=4, seed=0)
    assert plan.batches_per_epoch == 6
    for number in range(200):
        batch = plan.batch(number)
        assert len(batch) == 4
        assert len({SHAPES[visit.position] for visit in batch}) == 1


def test_no_visit_is_lost_and_all_come_equally_often():
    plan = BatchPlan(SHAPES, size=4, seed=0)
    drawn = [visit for number in range(1000) for visit in plan.batch(number)]
    assert len(set(drawn)) == len(drawn), "each position once in each time through its stream"
    count = Counter(visit.position for visit in drawn)
    assert set(count) == set(range(25))
    assert max(count.values()) - min(count.values()) <= 2
    early = Counter(visit.position for number in range(2 * 6) for visit in plan.batch(number))
    assert set(early) == set(range(25)), "two epochs reach everything"


def test_the_order_is_random_and_depends_on_the_seed():
    first = [visits(number) for number in range(6)]
    assert first == [visits(number) for number in range(6)]
    assert first != [visits(number, seed=1) for number in range(6)]
    shapes = [[SHAPES[visits(number)[0].position] for number in range(turn, turn + 6)] for turn in range(0, 60, 6)]
    assert len({tuple(order) for order in shapes}) > 5


@pytest.mark.parametrize("done", [0, 1, 5])
def test_a_resumed_epoch_is_the_rest_of_the_uninterrupted_one(done):
    for rank in range(2):
        full = list(sampler(ranks=2, rank=rank, place=lambda: (3, 0)))
        assert list(sampler(ranks=2, rank=rank, place=lambda: (3, 2 * done))) == full[2 * done :]
        assert len(full) == len(sampler(ranks=2, rank=rank)) == 12


def test_processes_share_a_batch_of_one_shape():
    parts = [list(sampler(ranks=2, rank=rank, place=lambda: (1, 0))) for rank in range(2)]
    plan = BatchPlan(SHAPES, size=4, seed=0)
    for number in range(6):
        own = [part[2 * number : 2 * number + 2] for part in parts]
        assert own[0] + own[1] == plan.batch(6 + number)


def test_the_epoch_is_that_of_set_epoch_without_a_place():
    one = sampler()
    first = list(one)
    one.set_epoch(1)
    assert list(one) == list(sampler(place=lambda: (1, 0))) != first
