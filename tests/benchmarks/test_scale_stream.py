"""What streaming costs: that figures are there, and that memory of families falls once looks are forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.scripts import Modules


def test_streaming_and_random_access_read_the_same_shards(
    scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts.scale_stream, "IN_SHARD", 40)
    found = scripts.scale_stream.stream(100, tmp_path)
    assert len(list((tmp_path / "stream-100").glob("*.tar"))) == 3
    assert set(found) == {"first_batch_s", "thousand_s", "resumed_s", "random_first_batch_s", "random_thousand_s"}
    assert min(found.values()) > 0


def test_of_forgotten_pictures_tens_of_bytes_are_kept(scripts: Modules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts.scale_stream, "PICTURES", 100)
    monkeypatch.setattr(scripts.scale_stream, "EVERY", 1)
    monkeypatch.setattr(scripts.scale_stream, "PROCESSES", 1)
    found = scripts.scale_stream.families(20_100)
    assert found["memory_bytes"] < 100 and found["checkpoint_bytes"] < 70
    assert found["step_s"] > 0
