"""What the watch costs: the figures are there, and those that have a mark keep it at a small number of pictures."""

from __future__ import annotations

import uuid

from tests.benchmarks.scripts import Modules


def test_an_update_and_what_is_kept_are_measured(scripts: Modules) -> None:
    found = scripts.scale_watch.monitor_update(12_000, ranks=2, batch=4)
    assert 0 < found["step_s"] == found["update_s"] / 8
    assert 16 < found["checkpoint_bytes"] <= 32 < found["uuid_bytes"]
    assert found["memory_bytes"] == 4 + 4 * 8 + 1, "visits, three numbers and a place, and whether it is frequent"


def test_names_are_of_the_kinds_that_they_are_meant_to_be(scripts: Modules) -> None:
    names = scripts.scale_watch.uuids(50)
    assert len(set(names)) == 50 and all(str(uuid.UUID(name)) == name for name in names)
    assert scripts.scale_watch.numbered(2) == ["00000/000000000", "00000/000000001"]
