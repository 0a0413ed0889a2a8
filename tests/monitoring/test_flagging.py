"""Held-out samples before training: measured until each has visits enough, and not for ever."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import seed_everything

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.module import TextImageDataModule
from memtrain.monitoring.flagging import WARM_UP, Flagging
from memtrain.monitoring.options import WatchSettings
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.training.text_to_image import TextToImageModule
from tests.conftest import train


def prepared(
    folder: Path, images: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[MemorizationMonitor, int, list[int], float]:
    """The monitor after one step; held-out samples, the number of each measurement, and the threshold to begin with."""
    seed_everything(0)
    data = TextImageDataModule(str(images), resolution=16, batch_size=4, heldout_fraction=0.34, cache_latents=True)
    monitor = MemorizationMonitor(
        [DenoisingLoss()], false_positive_rate=0.2, minimum_visits=6, settings=WatchSettings(reference_draws=1)
    )
    counts, threshold, calibrate, prepare = [], math.nan, Flagging.calibrate, Flagging.prepare

    def counted(self: Flagging, count: int) -> None:
        counts.append(count)
        calibrate(self, count)

    def before_training(self: Flagging, *, resumed: bool) -> None:
        nonlocal threshold
        prepare(self, resumed=resumed)
        threshold = self.calibration.threshold

    monkeypatch.setattr(Flagging, "calibrate", counted)
    monkeypatch.setattr(Flagging, "prepare", before_training)
    train(folder, TextToImageModule(str(pretrained), ema_decay=None), data, callbacks=[monitor], stop=1)
    return monitor, len(data.heldout_dataset.unique()), counts[:-1], threshold  # type: ignore[union-attr]


def test_few_heldout_samples_give_a_threshold_before_training(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor, heldout, counts, threshold = prepared(tmp_path, write_folder(24), pipeline_folder, monkeypatch)
    assert 8 <= heldout < 32
    assert monitor.calibration.heldout_ready() == heldout
    assert math.isfinite(threshold)
    assert set(counts) == {heldout}
    assert 6 < len(counts) < 6 * 2 + WARM_UP


def test_values_that_never_come_do_not_keep_training_from_beginning(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DenoisingLoss, "absolute", lambda self, values: values * math.nan)
    _, _, counts, threshold = prepared(tmp_path, write_folder(24), pipeline_folder, monkeypatch)
    assert len(counts) == 6 * 2 + WARM_UP
    assert threshold == math.inf
