"""Visits reach the record table and come back from it as they were."""

from pathlib import Path

import torch

from memtrain.models.observation import Observation
from memtrain.monitoring.visits import Visits
from memtrain.records import RecordWriter, read_steps

COLUMNS = ["denoising_loss", "attention_entropy.site"]


def visits(batch: int, rank: int, *, lengths: torch.Tensor | None) -> Visits:
    observation = Observation(["a", "b"], lengths, timesteps=torch.tensor([999, 3]))
    values = torch.tensor([[0.1, 2.0], [0.3, 4.0]]) + batch
    packed = Visits.pack(observation, torch.tensor([1.0, 0.0]), values)
    return Visits(batch, rank, 0, batch, ["a", "b"], torch.tensor([0.5, -1.0]), torch.tensor([True, False]), packed)


def test_rows_hold_what_was_packed() -> None:
    rows = visits(7, 1, lengths=torch.tensor([5, 6])).rows(COLUMNS)
    assert rows["timestep"] == [999, 3]
    assert rows["prompt_length"] == [5, 6]
    assert rows["weight"] == [1.0, 0.0]
    assert rows["batch"] == [7, 7]
    torch.testing.assert_close(torch.tensor(rows["denoising_loss"]), torch.tensor([7.1, 7.3]))
    assert visits(7, 1, lengths=None).rows(COLUMNS)["prompt_length"] == [None, None]


def test_visits_come_back_from_the_record_table(tmp_path: Path) -> None:
    kept = [visits(batch, rank, lengths=None) for batch in range(4) for rank in range(2)]
    for rank in range(2):
        writer = RecordWriter(tmp_path, rank=rank)
        for visit in kept:
            if visit.rank == rank:
                writer.append(visit.batch, visit.rows(COLUMNS))
        writer.flush()
    found = Visits.from_rows(read_steps(tmp_path, first=2).to_pylist(), COLUMNS)
    assert [(visit.batch, visit.rank) for visit in found] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    for visit, original in zip(found, kept[4:], strict=True):
        assert visit.recorded
        assert visit.keys == original.keys
        assert visit.timesteps == original.timesteps
        assert torch.equal(visit.values, original.values)


def test_no_visit_one_and_two_are_recorded_and_read_again() -> None:
    for count in (0, 1, 2):
        observation = Observation(["a", "b"][:count], timesteps=torch.tensor([3, 900])[:count])
        packed = Visits.pack(observation, torch.ones(count), torch.zeros(count, 2))
        none = torch.zeros(count, dtype=torch.bool)
        visits = Visits(0, 0, 0, 0, observation.keys, none.float(), none, packed)
        rows = visits.rows(["x", "y"])
        assert {len(column) for column in rows.values()} == {count}
        names = list(rows)
        again = Visits.from_rows(
            [dict(zip(names, row, strict=True)) for row in zip(*rows.values(), strict=True)], ["x", "y"]
        )
        assert [visit.keys for visit in again] == ([observation.keys] if count else [])
        assert visits.values.shape == (count, 2)
