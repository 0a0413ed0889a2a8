"""An epoch that was begun in other batches: what is left of it is visited once each, on however many processes."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.data.bucket_sampler import BatchPlan, BucketSampler
from memtrain.data.continuation import Continued, go_on
from memtrain.data.resumed_epoch import Place, limited, recount
from memtrain.data.sampler import ResumableDistributedSampler

SHAPES = [(8, 8)] * 20 + [(8, 16)] * 13 + [(16, 8)] * 9
FEW = settings(max_examples=40, deadline=None)


def trainer(*, processes, rank=0, epoch=0, limit=1.0):
    return SimpleNamespace(world_size=processes, global_rank=rank, limit_train_batches=limit, current_epoch=epoch)


def counters(*, epoch=0, batches=0):
    """Lightning's, as a checkpoint in the middle of an epoch holds them."""
    current = {"ready": batches, "started": batches, "processed": batches, "completed": max(0, batches - 1)}
    return {
        "epoch_loop.batch_progress": {"current": current, "is_last_batch": False},
        "epoch_progress": {"current": {"started": epoch + 1}},
    }


class Parts:
    """A run in parts: each with a batch size and a number of processes; a part says which visits it made."""

    def __init__(self, count, *, bucketed=False, seed=3):
        self.count, self.bucketed, self.seed, self.saved, self.done, self.epoch = count, bucketed, seed, None, 0, 0
        self.dataset = list(range(count))
        if bucketed:
            self.dataset = SimpleNamespace(shapes_of_visits=lambda: SHAPES)

    def _sampler(self, rank, processes, batch_size, at):
        common = {"num_replicas": processes, "rank": rank, "seed": self.seed, "place": lambda: tuple(at)}
        if self.bucketed:
            with_length = SimpleNamespace(shapes_of_visits=lambda: SHAPES, __len__=lambda: self.count)
            sampler = BucketSampler.__new__(BucketSampler)
            torch.utils.data.DistributedSampler.__init__(
                sampler, range(self.count), num_replicas=processes, rank=rank, seed=self.seed
            )
            sampler.shapes = with_length.shapes_of_visits()
            sampler.plan = BatchPlan(SHAPES, size=processes * batch_size, seed=self.seed)
            sampler.streams, sampler.batch_size, sampler.place = None, batch_size, common["place"]
            return sampler
        sampler = ResumableDistributedSampler(range(self.count), **common)
        sampler.batch_size = batch_size
        return sampler

    def run(self, *, batch_size, processes, batches):
        """Train so many batches more of this epoch (or to its end), in such batches."""
        visits, per_epoch, begun = [], 0, self.done
        for rank in range(processes):
            at = [self.epoch, 0]
            fake = trainer(processes=processes, rank=rank, epoch=self.epoch)
            loops = counters(epoch=self.epoch, batches=begun)
            sampler = self._sampler(rank, processes, batch_size, at)
            per_epoch = len(sampler) // batch_size
            if self.saved is not None:
                go_on(Continued(self.saved, None), sampler, fake, batch_size=batch_size, loops=loops)
            start = loops["epoch_loop.batch_progress"]["current"]["ready"]
            at[1] = start * batch_size
            stop = min(per_epoch, start + batches)
            mine = list(sampler)[: (stop - start) * batch_size]
            assert len(mine) == (stop - start) * batch_size, "the loader has as many batches as the trainer expects"
            visits += [(number // batch_size, visit) for number, visit in enumerate(mine)]
        rest, streams = getattr(sampler, "rest", None), getattr(sampler, "streams", None)
        self.saved = {
            "settings": {"batch_size": batch_size, "processes": processes},
            "samples": {"visits": torch.ones(self.count, dtype=torch.int32)},
            "batches": per_epoch,
            "seed": self.seed,
            "ordered": False,
            "rest": None if rest is None else rest.state_dict(),
            "streams": None if streams is None else streams.state_dict(),
        }
        self.done = stop
        return visits

    @property
    def over(self):
        return self.done >= self.saved["batches"]

    def next_epoch(self):
        self.epoch, self.done = self.epoch + 1, 0


parts = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=4)


@FEW
@given(count=st.integers(24, 90), parts=parts, last=st.tuples(st.integers(1, 7), st.integers(1, 3)))
def test_every_visit_of_an_epoch_is_made_once_however_it_is_cut(count, parts, last):
    run, seen = Parts(count), []
    for batch_size, processes, batches in parts:
        seen += run.run(batch_size=batch_size, processes=processes, batches=batches)
    seen += run.run(batch_size=last[0], processes=last[1], batches=10**6)
    times = Counter(visit for _, visit in seen)
    # Processes that do not divide the data repeat a sample to fill their last batch, with and without a resume.
    assert sum(number - 1 for number in times.values()) < max([*(processes for _, processes, _ in parts), last[1]])
    assert count - len(times) < max([*(size * processes for size, processes, _ in parts), last[0] * last[1]])


@FEW
@given(parts=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 2), st.integers(1, 9)), min_size=2, max_size=7))
def test_streams_of_shapes_go_on_where_they_stopped(parts):
    run, seen = Parts(len(SHAPES), bucketed=True), []
    for batch_size, processes, batches in parts:
        found = run.run(batch_size=batch_size, processes=processes, batches=batches)
        by_batch = {}
        for number, visit in found:
            by_batch.setdefault(number, set()).add(SHAPES[visit.position])
        assert all(len(shapes) == 1 for shapes in by_batch.values())
        seen += [visit for _, visit in found]
        if run.over:
            run.next_epoch()
    assert len(set(seen)) == len(seen), "no visit of a sample is made twice"
    for shape in set(SHAPES):
        times = Counter(visit.position for visit in seen if SHAPES[visit.position] == shape)
        all_times = [times[position] for position, one in enumerate(SHAPES) if one == shape]
        assert max(all_times) - min(all_times) <= 1, "none comes again before all have come"


def test_the_same_settings_leave_everything_as_it_is():
    run = Parts(40)
    run.run(batch_size=4, processes=1, batches=3)
    loops, sampler = counters(batches=3), run._sampler(0, 1, 4, [0, 12])
    go_on(Continued(run.saved, None), sampler, trainer(processes=1), batch_size=4, loops=loops)
    assert sampler.rest is None
    assert loops == counters(batches=3)


def test_left_out_samples_leave_the_others_where_they_were():
    run = Parts(20)
    first = [visit for _, visit in run.run(batch_size=4, processes=1, batches=2)]
    moved = torch.tensor([-1 if old < 3 else old - 3 for old in range(20)])
    sampler = ResumableDistributedSampler(range(17), num_replicas=1, rank=0, seed=3, place=lambda: (0, at))
    sampler.batch_size, loops = 2, counters(batches=2)
    go_on(Continued(run.saved, moved), sampler, trainer(processes=1), batch_size=2, loops=loops)
    at = loops["epoch_loop.batch_progress"]["current"]["ready"] * 2
    rest = [position + 3 for position in sampler]
    assert sorted(rest) == sorted(set(range(3, 20)) - set(first))


def test_counters_end_with_the_epoch():
    loops = counters(batches=5)
    recount(loops, by=4, last=True)
    progress = loops["epoch_loop.batch_progress"]
    assert (progress["current"]["ready"], progress["current"]["completed"], progress["is_last_batch"]) == (9, 8, True)


@pytest.mark.parametrize(("limit", "batches"), [(1.0, 10), (0.25, 2), (3, 3), (30, 10)])
def test_limited_epochs_are_counted_as_lightning_does(limit, batches):
    assert limited(10, limit) == batches


def test_a_finished_epoch_is_told_from_one_that_is_not():
    assert Place.of(counters(epoch=2, batches=5), batches_per_epoch=5) == Place(2, 5, True)
    assert not Place.of(counters(epoch=2, batches=4), batches_per_epoch=5).finished
