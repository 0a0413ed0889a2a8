"""Parts of the prompts: said, or read from a job array and a launcher."""

from __future__ import annotations

import pytest

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.shards import Shard, read_shard


def test_said_parts() -> None:
    assert read_shard("0/1", environment={"WORLD_SIZE": "9", "RANK": "3"}) == Shard()
    assert read_shard("3/4") == Shard(3, 4)
    assert read_shard("merge") is None
    for wrong in ("4/4", "1", "-1/4", "a/b", "1/0", ""):
        with pytest.raises(ConfigurationError, match="names no share"):
            read_shard(wrong)


def test_alone_a_process_scores_everything() -> None:
    assert read_shard(environment={}) == Shard(0, 1)
    alone = {
        "MEMTRAIN_SHARD": "array",
        "SLURM_ARRAY_TASK_COUNT": "1",
        "SLURM_ARRAY_TASK_MIN": "3",
        "SLURM_ARRAY_TASK_ID": "3",
    }
    assert read_shard(environment={**alone, "MEMTRAIN_SHARD": "array"}) == Shard(0, 1), (
        "a task submitted again by itself"
    )


def test_array_and_ranks_make_every_part_once() -> None:
    array = {
        "MEMTRAIN_SHARD": "array",
        "SLURM_ARRAY_TASK_COUNT": "3",
        "SLURM_ARRAY_TASK_MIN": "4",
        "SLURM_ARRAY_TASK_STEP": "2",
        "WORLD_SIZE": "2",
    }
    parts = [
        read_shard(
            "array", environment={**array, "SLURM_ARRAY_TASK_ID": str(task), "WORLD_SIZE": "2", "RANK": str(rank)}
        )
        for task in (4, 6, 8)
        for rank in (0, 1)
    ]
    assert parts == [Shard(index, 6) for index in range(6)]


def test_who_puts_parts_together() -> None:
    for said, merges in (({}, True), ({"MEMTRAIN_MERGE": "job"}, False)):
        found = [read_shard("1/2", environment=said), read_shard(environment=said)]
        assert [shard.merges for shard in found if shard is not None] == [merges, merges]
        assert found == [Shard(1, 2), Shard()]
    with pytest.raises(ConfigurationError, match="MEMTRAIN_MERGE='jobs'"):
        read_shard(environment={"MEMTRAIN_MERGE": "jobs"})


def test_an_array_with_gaps_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="without gaps"):
        read_shard("array", environment={"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_ID": "2"})


def test_an_array_of_ones_own_and_left_over_variables_share_nothing() -> None:
    """Such as an array with a model for each task, and the WORLD_SIZE of a launcher that is gone."""
    array = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_ID": "1"}
    assert read_shard(environment=array) == Shard()
    assert read_shard(environment={"WORLD_SIZE": "8"}) == Shard()
    assert read_shard("array", environment=array) == Shard(1, 4)
    with pytest.raises(ConfigurationError, match="RANK is 'one'"):
        read_shard(environment={"WORLD_SIZE": "2", "RANK": "one"})
