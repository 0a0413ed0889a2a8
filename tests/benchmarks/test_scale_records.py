"""The benchmark of profile and records: figures of a small run."""

from __future__ import annotations

import pytest

from tests.benchmarks.scripts import Modules


@pytest.mark.slow
def test_figures_come_out_and_parts_stay_few(scripts: Modules) -> None:
    profile = scripts.scale_records.profile(300)
    assert set(profile) == {"write_s", "merge_s", "restart_s", "restart_mb", "disk_bytes"}
    assert 17 * 4 * 4 < profile["disk_bytes"] < 2 * 17 * 4 * 4
    records = scripts.scale_records.records(100, visits_each=9)
    assert records["files"] == 2, "56 batches of 16 are a part of 50, and the rest"
    assert 0 < records["visit_bytes"] < 1000
