"""Units of work: kept, shared, required, and spoilt ones refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memtrain.errors import RecordError
from memtrain.evaluation.sampling.stored_samples import StoredSamples, UnfinishedParts
from memtrain.evaluation.stages.parts import Done, Parts, Unit, part_of
from memtrain.evaluation.stages.shards import Shard


def units(done: list[str]) -> dict[str, Unit]:
    def work(name: str) -> Done:
        done.append(name)
        return Done({"numbers": torch.tensor([len(name)])}, {"of": name})

    return {name: lambda name=name: work(name) for name in ("a", "bb", "ccc")}  # type: ignore[misc]


def test_units_are_shared_and_done_once(tmp_path: Path) -> None:
    done: list[str] = []
    with pytest.raises(UnfinishedParts, match="1 of 3 units are missing"):
        Parts(tmp_path, {"what": 1}, shard=Shard(0, 2)).share(units(done))
    with pytest.raises(UnfinishedParts):
        Parts(tmp_path, {"what": 1}, shard=None).share(units(done))
    other = Parts(tmp_path, {"what": 1}, shard=Shard(1, 2))
    other.share(units(done))
    assert done == ["a", "ccc", "bb"]
    found = other.read("ccc")
    assert found.tensors["numbers"].tolist() == [3] and found.facts == {"of": "ccc"}
    Parts(tmp_path, {"what": 2}).share(units(done))
    assert len(done) == 6, "other settings, other units"
    other.closed({})
    assert not other.folder.exists() and tmp_path.exists()


def test_a_spoilt_unit_is_named(tmp_path: Path) -> None:
    parts = Parts(tmp_path, {})
    parts.share(units([]))
    (parts.folder / "bb.safetensors").write_bytes(b"nothing")
    with pytest.raises(RecordError, match=r"bb\.safetensors cannot be read"):
        parts.read("bb")


def test_batches_of_several_processes_become_one_file(tmp_path: Path) -> None:
    """The same bytes as of one process, also where the number of processes changes on the way."""
    images = torch.arange(5 * 3 * 2 * 2).view(5, 3, 2, 2).to(torch.uint8)
    rows = [range(0, 2), range(2, 4), range(4, 5)]

    def samples(name: str, part: tuple[int, int] | None) -> StoredSamples:
        return StoredSamples(tmp_path / name, {"a": 1}, count=5, batch=2, part=part)

    whole = samples("whole", (0, 1))
    for one in rows:
        whole.write(one, images[one.start : one.stop], {})
    whole.put_together()
    second = samples("shared", (1, 2))
    assert second.missing() == [rows[1]]
    second.write(rows[1], images[2:4], {})
    with pytest.raises(UnfinishedParts, match="2 of 3 batches"):
        samples("shared", part_of(None)).put_together()
    alone = samples("shared", (0, 1))
    assert alone.missing() == [rows[0], rows[2]]
    for one in alone.missing():
        alone.write(one, images[one.start : one.stop], {})
    alone.put_together()
    assert torch.equal(alone.read()[0], images)
    files = [
        sorted(path.name for path in (tmp_path / name).iterdir() if path.name[0] != ".") for name in ("whole", "shared")
    ]
    assert files[0] == files[1]
    for name in files[0]:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()
