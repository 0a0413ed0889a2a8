"""Fingerprints of forgotten pictures: found again, bounded, and the same from a saved state."""

import torch

from memtrain.families.remembered_hashes import RememberedHashes


def test_names_are_found_by_fingerprints() -> None:
    memory = RememberedHashes(100)
    assert memory.owner(3) is None
    memory.add({5: "five", -(2**63): "least", 2**63 - 1: "ünï/\udc80"})
    memory.add({5: "again", 7: ""})
    assert [memory.owner(one) for one in (5, -(2**63), 2**63 - 1, 7, 6)] == ["five", "least", "ünï/\udc80", "", None]
    assert memory.since(1) == [(-(2**63), "least"), (2**63 - 1, "ünï/\udc80"), (7, "")]
    memory.add({})
    assert len(memory) == 4


def test_what_was_added_first_goes_first() -> None:
    memory = RememberedHashes(16)
    for start in range(0, 40, 5):
        memory.add({one: f"name {one}" for one in range(start, start + 5)})
    kept = [one for one in range(40) if memory.owner(one) is not None]
    assert kept == list(range(kept[0], 40)) and 14 <= len(kept) <= 16
    assert all(memory.owner(one) == f"name {one}" for one in kept)
    assert memory.dropped == kept[0]
    memory.add({100 + one: f"more {one}" for one in range(50)})
    assert len(memory) <= 16 and memory.owner(149) == "more 49"


def test_a_saved_state_holds_everything(tmp_path) -> None:
    memory = RememberedHashes(16)
    memory.add({one * 7919 % 31: f"name {one}" for one in range(20)})
    torch.save(memory.state_dict(), tmp_path / "state.pt")
    other = RememberedHashes(16)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.since(0) == memory.since(0) and other.dropped == memory.dropped
    assert [other.owner(one) for one in range(31)] == [memory.owner(one) for one in range(31)]


def test_each_takes_tens_of_bytes() -> None:
    memory = RememberedHashes(2**21)
    for start in range(0, 40_000, 10_000):
        memory.add({(start + one) * 2654435761: f"shard-00000/image-{start + one:09d}" for one in range(10_000)})
    assert memory.size < 70 * len(memory)
