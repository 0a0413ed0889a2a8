"""Visits by the planned end of a run, in closed form, and what the monitor says of them."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline

from memtrain.callbacks.lightning_host import LightningHost
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.families.table import Families
from memtrain.monitoring.host import Host, Plan
from memtrain.monitoring.options import WatchSettings
from memtrain.monitoring.planned_visits import expected_visits, too_short_for_flags
from tests.callbacks.test_monitor import Foreign, ForeignData, fit


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"max_steps": -1, "max_epochs": 10, "batches_per_epoch": 32, "counted_share": 0.8}, 8),
        ({"max_steps": 160, "max_epochs": 10, "batches_per_epoch": 32}, 5),
        ({"max_steps": 160, "max_epochs": -1, "batches_per_epoch": 32, "accumulate": 4}, 20),
        ({"max_steps": 160, "max_epochs": None, "batches_per_epoch": 32, "visits_per_epoch": 3}, 15),
        ({"max_steps": -1, "max_epochs": 10, "batches_per_epoch": 8, "batches_of_data": 32}, 2.5),
        ({"max_steps": -1, "max_epochs": -1, "batches_per_epoch": 32}, None),
    ],
)
def test_visits_by_the_planned_end(plan: dict[str, Any], expected: float | None) -> None:
    more = {name: plan.pop(name) for name in ("visits_per_epoch", "counted_share") if name in plan}
    assert expected_visits(Plan(**plan), **more) == expected


def planned(batches: float = 32, **data: Any) -> Host:
    trainer = SimpleNamespace(
        num_training_batches=batches,
        max_steps=-1,
        max_epochs=10,
        accumulate_grad_batches=1,
        train_dataloader=[None] * 32,
        datamodule=SimpleNamespace(**data),
        default_root_dir=".",
        callbacks=[],
    )
    return LightningHost(trainer, None)


def said(host: Host, *, minimum_visits: int = 10, paired_every: int | None = None) -> str | None:
    return too_short_for_flags(host, minimum_visits=minimum_visits, maximum_timestep=800, paired_every=paired_every)


def test_ten_epochs_of_single_visits_are_too_few_for_ten_that_count() -> None:
    text = said(planned())
    assert text is not None
    assert "about 8.0 visits that count, but a flag needs 10" in text
    assert "paired_every" not in text
    assert said(planned(), minimum_visits=8) is None
    assert "about 7.2" in (said(planned(caption_dropout=0.1)) or "")
    paired = said(planned(), minimum_visits=6, paired_every=4)
    assert paired is not None
    assert "about 2.0" in paired
    assert "lower minimum_visits or paired_every" in paired


def test_samples_that_are_visited_more_often_can_be_flagged_canaries_aside() -> None:
    assert said(planned(visits_per_epoch={"a": 1, "b": 2})) is None
    assert said(planned(visits_per_epoch={"a": 1, "b": 2}, groups={"b": "canary"})) is not None


def test_of_streamed_data_nothing_is_said() -> None:
    assert said(planned(float("inf"))) is None


def test_the_monitor_says_so_before_the_first_batch(
    pipeline: StableDiffusionPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(epochs: int) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="memtrain"):
            monitor = MemorizationMonitor(
                reference=False,
                settings=WatchSettings(maximum_timestep=1000),
            )
            fit(Foreign(pipeline.unet), tmp_path / str(epochs), [monitor], data=ForeignData(), max_epochs=epochs)
        return [record.getMessage() for record in caplog.records if "planned end" in record.getMessage()]

    (text,) = run(1)
    assert "about 4.0 visits that count, but a flag needs 6" in text
    assert not run(2)


@pytest.mark.parametrize(("batches", "expected"), [(0, 0.0), (1, 3.0), (2, 3.0)])
def test_an_epoch_of_no_batch_one_and_two(batches: int, expected: float) -> None:
    assert expected_visits(Plan(max_steps=-1, max_epochs=3, batches_per_epoch=batches)) == expected


def test_the_files_of_a_picture_are_counted_together() -> None:
    visits = {**{f"copy{index}": 1 for index in range(4)}, "other": 2, "canary": 50}
    data = {"visits_per_epoch": visits, "groups": {"canary": "canary"}}
    assert "about 16.0 visits" in str(said(planned(**data), minimum_visits=30))
    families = Families({f"copy{index}": "copy0" for index in range(4)})
    assert "about 32.0 visits" in str(said(planned(**data, families=families), minimum_visits=40))
    assert said(planned(**data, families=families), minimum_visits=30) is None
