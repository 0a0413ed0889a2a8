"""Means from the records are those of the evidence, but for the first visits, which had nothing to compare with."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from memtrain.evidence.base_profile import ReferenceProfile
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.visit_summary import summarise
from memtrain.monitoring.options import WatchOptions, WatchSettings
from memtrain.monitoring.recorded_values import RecordedValues
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.readings import Readings

KEYS = [f"k{number}" for number in range(12)]
READINGS = Readings([DenoisingLoss(), AttentionEntropy()], ["down", "up"])
COLUMNS = READINGS.columns


def records(visits: int = 240) -> pa.Table:
    draw = np.random.default_rng(1)
    values = draw.random((visits, 2 * len(COLUMNS)), dtype=np.float32) + 0.5
    values[draw.random(visits) < 0.1] = np.nan
    names = [*COLUMNS, *(f"base.{name}" for name in COLUMNS)]
    return pa.table(
        {
            "key": [KEYS[row] for row in draw.integers(0, len(KEYS), visits)],
            "batch": pa.array(np.arange(visits) // 8, pa.int64()),
            "step": pa.array(np.arange(visits) // 8, pa.int64()),
            "rank": pa.array(np.zeros(visits), pa.int32()),
            "timestep": pa.array(draw.integers(0, 1000, visits), pa.int32()),
            "flagged": [False] * visits,
            "weight": pa.array(np.ones(visits, dtype=np.float32)),
            **{name: values[:, column] for column, name in enumerate(names)},
        }
    )


def profile(folder: Path) -> ReferenceProfile:
    made = ReferenceProfile(folder, READINGS.signals, COLUMNS)
    made.cover(KEYS, KEYS)
    made.put(KEYS, torch.rand(len(KEYS), 4, len(COLUMNS), generator=torch.Generator().manual_seed(0)) + 0.5)
    return made


@pytest.mark.parametrize("reference", [True, "first_visit", "paired", False])
def test_means_are_those_of_the_counted_visits(tmp_path: Path, reference: bool | str) -> None:
    table, base = records(), profile(tmp_path)
    options = WatchOptions(reference=reference, settings=WatchSettings(maximum_timestep=800))  # type: ignore[arg-type]
    values = RecordedValues(READINGS, base, options, slice(0, 1))
    assert values.columns == COLUMNS[1:]
    found = summarise([table.slice(0, 100), table.slice(100)], values, columns=values.columns).to_pylist()
    own, expected = torch.tensor([[row[name] for name in COLUMNS] for row in table.to_pylist()]), {}
    for row, single in zip(table.to_pylist(), own, strict=True):
        against = None
        if reference in (True, "first_visit"):
            against = base.lookup([row["key"]], [row["timestep"]])
        elif reference == "paired":
            against = torch.tensor([[row[f"base.{name}"] for name in COLUMNS]])
        if row["timestep"] < 800 and (reference != "paired" or row["step"] > 0):
            expected.setdefault(row["key"], []).append(READINGS.compare(single[None], against)[0].double())
    for row in found:
        means = torch.stack(expected[row["key"]]).nanmean(dim=0)
        for name, mean in zip(COLUMNS[1:], means[1:].tolist(), strict=True):
            assert row[name] == pytest.approx(mean, rel=1e-9)


def test_they_differ_from_the_means_of_evidence_by_the_visits_that_could_not_be_standardised(tmp_path: Path) -> None:
    """What is kept of the scored column is compared with the same from the records."""
    table = records()
    options = WatchOptions(reference=True)
    values = RecordedValues(READINGS, profile(tmp_path), options, slice(1, 1))
    streamed = {row["key"]: row for row in summarise([table], values, columns=values.columns).to_pylist()}
    kept = Calibration(READINGS.resolution, scored=slice(0, 1), memorized_when="low", buckets=4, heldout=False)
    extreme: dict[str, float] = {}
    for start in range(0, len(table), 8):
        batch = table.slice(start, 8)
        compared = torch.tensor(np.stack([values(batch)[name] for name in COLUMNS], axis=1))
        keys, times = batch["key"].to_pylist(), batch["timestep"].to_pylist()
        buckets = [values.profile.bucket(time) if time < 800 else None for time in times]
        kept.add(keys, buckets, compared, step=start)
        for key, value in zip(keys, compared[:, 0].abs().tolist(), strict=True):
            extreme[key] = max(extreme.get(key, 0.0), 0.0 if math.isnan(value) else value)
    counted = dict(zip(KEYS, kept.counted_visits(KEYS), strict=True))
    means = dict(zip(KEYS, kept.means(KEYS)[:, 0].tolist(), strict=True))
    visits = dict.fromkeys(KEYS, 0)
    for key, value in zip(table["key"].to_pylist(), values(table)["denoising_loss"].tolist(), strict=True):
        visits[key] += not math.isnan(value)
    early = {key: visits[key] - counted[key] for key in KEYS}
    assert 0 < sum(early.values()) <= 5 * 8, "no more than those of the first batches"
    for key in KEYS:
        if not early[key]:
            assert streamed[key]["denoising_loss"] == pytest.approx(means[key], rel=1e-9)
        bound = 2 * extreme[key] * early[key] / visits[key]
        assert abs(streamed[key]["denoising_loss"] - means[key]) <= bound + 1e-9


def test_samples_that_the_data_hold_no_longer_have_no_mean(tmp_path: Path) -> None:
    table = records().set_column(0, "key", pa.array(["gone"] * 240))
    values = RecordedValues(READINGS, profile(tmp_path), WatchOptions(), slice(0, 1))
    (row,) = summarise([table], values, columns=values.columns).to_pylist()
    assert row["visits"] == 240
    assert all(math.isnan(row[name]) for name in COLUMNS[1:])
    combined = RecordedValues(READINGS, profile(tmp_path), WatchOptions(), slice(0, len(COLUMNS)))
    assert not combined.columns and not combined.needed and not combined(table)
