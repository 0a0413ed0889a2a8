"""Shards: what is written is read, a damaged one is missing, and names tell contents apart."""

import os
import pickle
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from memtrain.data.tensor_shards import ShardWriter, TensorShards, content_key
from memtrain.errors import DataError


def filled(folder, count=5, *, size=40):
    writer = ShardWriter(folder, size)
    for number in range(count):
        writer.add(f"k{number}", {"a": torch.full((3,), float(number)), "b": torch.tensor(number)})
    writer.flush()
    shards = TensorShards(folder)
    shards.look()
    return shards


def test_what_is_written_is_read_also_in_another_process(tmp_path):
    shards = filled(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert not list(tmp_path.glob(".*")), "nothing unfinished is left"
    for again in (shards, pickle.loads(pickle.dumps(shards))):
        entry = again.read("k3")
        assert entry.keys() == {"a", "b"}
        assert entry["a"].tolist() == [3.0, 3.0, 3.0]
        assert entry["b"] == 3
    assert shards.missing(["k1", "x", "x", "k4"]) == ["x"]


def test_a_shard_that_was_cut_short_is_missing_and_removed(tmp_path):
    filled(tmp_path)
    whole = TensorShards(tmp_path)
    whole.look()
    path, _ = whole._where["k2"]
    path.write_bytes(path.read_bytes()[:-5])
    shards = TensorShards(tmp_path)
    shards.look()
    assert path.exists()
    lost = shards.missing([f"k{number}" for number in range(5)])
    assert "k2" in lost
    assert len(lost) < 5
    shards.look(clean=True)
    assert not path.exists()
    assert shards.missing([f"k{number}" for number in range(5)]) == lost


def test_what_a_killed_process_left_unfinished_goes_after_a_day(tmp_path):
    shards = filled(tmp_path)
    old, new = tmp_path / ".a.safetensors.1", tmp_path / ".b.safetensors.2"
    for path, age in ((old, 2 * 24 * 3600), (new, 60)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    shards.look()
    assert old.exists()
    shards.look(clean=True)
    assert not old.exists()
    assert new.exists()
    assert not shards.missing(["k0", "k4"])


def test_a_shard_that_goes_while_it_is_read_is_an_error(tmp_path):
    shards = filled(tmp_path)
    for path in tmp_path.glob("*"):
        path.unlink()
    with pytest.raises(DataError, match=r"cannot be read any more[\s\S]*Remedy"):
        shards.read("k0")


def test_a_bit_that_changed_is_noticed_and_its_shard_made_again(tmp_path):
    shards = filled(tmp_path)
    path, _ = shards._where["k2"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    shards = TensorShards(tmp_path)
    shards.look()
    with pytest.raises(DataError, match=r"is not what was written[\s\S]*Remedy: continue the run"):
        [shards.read(key) for key in ("k2", "k3")]
    shards.look()
    assert set(shards.missing([f"k{number}" for number in range(5)])) == {"k2", "k3"}


def test_shards_of_earlier_versions_have_no_checksums(tmp_path):
    shards = filled(tmp_path)
    path, _ = shards._where["k2"]
    save_file(load_file(path), path)
    shards.look()
    assert shards.read("k2")["b"] == 2


def test_only_so_many_files_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr("memtrain.data.tensor_shards.OPEN", 2)
    shards = filled(tmp_path, 9)
    for number in (0, 8, 4, 0, 2):
        assert shards.read(f"k{number}")["b"] == number
        assert len(shards._open) <= 2


def test_keys_tell_contents_apart():
    keys = [
        content_key(torch.tensor([1, 2])),
        content_key(torch.tensor([1, 2]).int()),
        content_key(torch.tensor([[1, 2]])),
        content_key("a", "b"),
        content_key("ab"),
        content_key("a", 1),
    ]
    assert len(set(keys)) == len(keys)
    assert content_key(torch.tensor([1, 2]), "x") == content_key(torch.tensor([[0, 1, 2]])[0, 1:], "x")
