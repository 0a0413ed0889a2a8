"""The monitor with every signal, canaries and their combination, in the project's own module."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.data.canaries import Canaries
from memtrain.data.module import TextImageDataModule
from memtrain.errors import CalibrationError
from memtrain.evidence.direction import Direction
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps, read_table
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.guidance_norm import GuidanceNorm
from memtrain.signals.value_outliers import ValueOutliers
from memtrain.training.text_to_image import TextToImageModule
from tests.conftest import train


def run(
    folder: Path, images: Path, pretrained: Path, *, stop: int, resume: bool = False, canaries: int = 5
) -> MemorizationMonitor:
    seed_everything(0)
    module = TextToImageModule(str(pretrained), learning_rate=1e-3, ema_decay=None)
    data = TextImageDataModule(
        str(images),
        resolution=16,
        batch_size=4,
        heldout="split",
        heldout_fraction=0.34,
        canaries=Canaries(count=canaries, repeats=4) if canaries else None,
        cache_latents=True,
    )
    monitor = MemorizationMonitor(
        [DenoisingLoss(), AttentionEntropy(), GuidanceNorm(every=1), ValueOutliers()],
        flag_by="combined",
        # So strict that enough of these few samples, all learnt quickly, are left to tell the canaries from.
        false_positive_rate=1e-4,
        minimum_visits=2,
        reference_folder=str(folder.parent / "profiles"),
        settings=WatchSettings(reference_timesteps=(200, 600), reference_draws=1, calibrate_every=2, heldout_batch=3),
    )
    callbacks: list[Any] = [
        monitor,
        SampleSkipping(),
    ]
    train(folder, module, data, callbacks=callbacks, stop=stop, resume=resume)
    return monitor


def test_all_signals_are_compared_with_the_base_model_and_canaries_weight_them(
    pipeline_folder: Path,
    write_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A run as short as this has few ordinary samples.
    monkeypatch.setattr("memtrain.evidence.direction.ORDINARY_VISITS", 2)
    monkeypatch.setattr(Direction, "ordinary_needed", lambda self: 8)
    images = write_folder(24)
    monitor = run(tmp_path / "whole", images, pipeline_folder, stop=26)
    assert monitor.calibration.direction is not None
    assert len(monitor.calibration.direction) == len(monitor.engine.readings.columns) == 1 + 3 + 1 + 3
    rows = read_steps(tmp_path / "whole" / "records")
    first = rows.filter([batch == 0 for batch in rows["batch"].to_pylist()])
    for name in monitor.engine.readings.columns:
        assert torch.isfinite(torch.tensor(first[name].to_pylist())).all(), name
    evidence = read_table(tmp_path / "whole" / "records", "evidence")
    assert {"guidance_norm", "p_value", "group"} <= set(evidence.column_names)
    assert evidence["group"].to_pylist().count("canary") == 5
    assert monitor.calibration.threshold < 20
    assert " of 5 canaries w" in capsys.readouterr().out
    kept = json.loads((tmp_path / "whole" / "records" / "calibration.json").read_text())
    assert (kept["canaries"], kept["canaries_flagged"]) == (5, monitor.calibration.power()[0])
    assert kept["separation"] == monitor.calibration.taught.separation > 0

    run(tmp_path / "cut", images, pipeline_folder, stop=14)
    resumed = run(tmp_path / "cut", images, pipeline_folder, stop=26, resume=True)
    assert torch.equal(resumed.calibration.direction, monitor.calibration.direction)
    again = read_table(tmp_path / "cut" / "records", "evidence")
    for name in ("key", "score", "value_outliers.mid_block.attentions.0.transformer_blocks.0.attn2"):
        if name in evidence.column_names:
            assert again[name].to_pylist() == evidence[name].to_pylist()


def test_combining_signals_needs_canaries(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match="combined with 0 canaries"):
        run(tmp_path / "run", write_folder(24), pipeline_folder, stop=2, canaries=0)


@pytest.mark.parametrize(
    ("canaries", "found"), [(3, "with 3 canaries"), (5, r"5 canaries, 1\d other training samples")]
)
def test_canaries_that_could_never_teach_a_direction_are_refused(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, canaries: int, found: str
) -> None:
    with pytest.raises(CalibrationError, match=found):
        run(tmp_path / "run", write_folder(24), pipeline_folder, stop=2, canaries=canaries)
    assert not (tmp_path / "run" / "records").exists()


def test_too_few_heldout_samples_are_refused_before_anything_is_measured(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Direction, "ordinary_needed", lambda self: 8)
    seen: list[object] = []
    monkeypatch.setattr(ValueOutliers, "fit", lambda signal, observations: seen.extend(observations))
    with pytest.raises(CalibrationError, match="held-out samples cannot calibrate"):
        run(tmp_path / "run", write_folder(12), pipeline_folder, stop=2)
    assert not seen
    assert not (tmp_path / "run" / "records").exists()
