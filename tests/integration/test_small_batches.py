"""Trainings whose global batch is one, two or four samples, so that batches without a counted visit are common."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.data.module import TextImageDataModule
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps, read_table
from memtrain.training.text_to_image import TextToImageModule
from tests.conftest import LETTERS, train

SAMPLES, STEPS = 140, 60
"""Half of the samples are held out: 64 make two classes of prompt length."""

Run = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose captions have from one to eight words."""
    folder, generator = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)
    rows = []
    for index in range(SAMPLES):
        pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f"{index:03}.png")
        words = " ".join(LETTERS[(index + word) % 26] for word in range(1 + index % 8))
        rows.append(json.dumps({"file_name": f"{index:03}.png", "text": words}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(images: Path, pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trains; all runs share the base model's profile."""
    profiles = tmp_path_factory.mktemp("profiles")

    def fit(folder: Path, *, batch: int, stop: int = STEPS, resume: bool = False, **options: int) -> SimpleNamespace:
        module = TextToImageModule(str(pipeline_folder), learning_rate=1e-3, seed=0)
        data = TextImageDataModule(
            str(images), resolution=16, batch_size=batch, heldout_fraction=0.5, cache_latents=True, seed=0
        )
        settings = WatchSettings(reference_draws=1, heldout_batch=16, **options)
        monitor = MemorizationMonitor(reference_folder=str(profiles), minimum_visits=2, settings=settings)
        train(folder, module, data, callbacks=[monitor, SampleSkipping()], stop=stop, resume=resume)
        weights = torch.cat([parameter.detach().flatten() for parameter in module.denoiser.parameters()])
        return SimpleNamespace(calibration=monitor.calibration, weights=weights, records=folder / "records")

    return fit


def without_counted_visits(records: Path, maximum_timestep: int) -> list[int]:
    """Numbers of the batches of which every visit is at too high noise."""
    steps = read_steps(records)
    lowest: dict[int, int] = {}
    for batch, timestep in zip(steps["batch"].to_pylist(), steps["timestep"].to_pylist(), strict=True):
        lowest[batch] = min(timestep, lowest.get(batch, timestep))
    return [batch for batch, timestep in lowest.items() if timestep >= maximum_timestep]


@pytest.mark.parametrize("batch", [1, 2])
def test_sixty_steps_at_a_batch_of_one_and_of_two(run: Run, tmp_path: Path, batch: int) -> None:
    found = run(tmp_path, batch=batch)
    assert found.calibration.standardisation.edges, "there are classes of prompt length"
    uncounted = without_counted_visits(found.records, 800)
    assert uncounted, "else the run shows nothing"
    steps, evidence = read_steps(found.records), read_table(found.records, "evidence")
    assert steps.num_rows == batch * STEPS
    keys = evidence["key"].to_pylist()
    counted = sum(timestep < 800 for timestep in steps["timestep"].to_pylist())
    assert sum(found.calibration.counted_visits(keys)) == counted < batch * STEPS
    assert torch.tensor(evidence["score"].to_pylist()).isfinite().all()
    assert found.calibration.threshold < float("inf")


def test_a_run_goes_on_from_right_after_a_batch_without_counted_visits(run: Run, tmp_path: Path) -> None:
    options = {"batch": 4, "maximum_timestep": 300, "calibrate_every": 1}
    whole = run(tmp_path / "whole", stop=24, **options)
    # A checkpoint is written every three steps.
    stop = next(1 + batch for batch in without_counted_visits(whole.records, 300) if batch % 3 == 2)
    run(tmp_path / "parts", stop=stop, **options)
    resumed = run(tmp_path / "parts", stop=24, resume=True, **options)
    assert resumed.calibration.standardisation.edges
    assert torch.equal(resumed.weights, whole.weights)
    assert read_steps(resumed.records).equals(read_steps(whole.records))
    # As text, in which a value that is not known equals itself.
    tables = [str(read_table(found.records, "evidence").to_pylist()) for found in (resumed, whole)]
    assert tables[0] == tables[1]
    assert resumed.calibration.threshold == whole.calibration.threshold
