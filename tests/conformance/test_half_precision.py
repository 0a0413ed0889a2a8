"""The monitor under autocast: the losses it reads are the module's own within rounding, and nothing looks memorized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.module import TextImageDataModule
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.training.denoising import Denoised
from memtrain.training.text_to_image import TextToImageModule
from tests.callbacks.test_monitor import fit
from tests.conftest import LETTERS

ROUNDING = 2**-8
"""Of one number in bfloat16."""


class Frozen(TextToImageModule):
    """Learns nothing, so no sample can be memorized; keeps the losses that it trains on."""

    def __init__(self, pretrained: str, **options: Any) -> None:
        super().__init__(pretrained, **options)
        self.own: list[float] = []

    def _denoise(self, *args: Any, **options: Any) -> Denoised:
        denoised = super()._denoise(*args, **options)
        if torch.is_grad_enabled():
            self.own += denoised.sample_loss.detach().tolist()
        return denoised

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.fixture
def images(tmp_path: Path) -> str:
    folder = tmp_path / "images"
    folder.mkdir()
    generator, rows = torch.Generator().manual_seed(0), []
    for index in range(70):
        pixels = torch.randint(255, (16, 16, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index:02}.png")
        rows.append(
            json.dumps({"file_name": f"{index:02}.png", "text": f"{LETTERS[index % 26]} {LETTERS[index // 26]}"})
        )
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("reference", [True, "paired"])
def test_losses_are_the_modules_own_and_few_samples_are_flagged(
    pipeline_folder: Path, images: str, tmp_path: Path, reference: Any
) -> None:
    data = TextImageDataModule(images, resolution=16, batch_size=8, heldout_fraction=0.3, cache_latents=True, seed=0)
    monitor = MemorizationMonitor(
        [DenoisingLoss()],
        minimum_visits=3,
        false_positive_rate=0.05,
        reference=reference,
        paired_every=1,
        settings=WatchSettings(reference_timesteps=(200, 600), reference_draws=1),
    )
    module = Frozen(str(pipeline_folder), ema_decay=None, seed=0)
    fit(module, tmp_path, [monitor], data=data, max_epochs=8, precision="bf16-mixed", limit_val_batches=0)
    table = read_steps(tmp_path / "records")
    read = torch.tensor(table["denoising_loss"].to_pylist())
    torch.testing.assert_close(read, torch.tensor(module.own), rtol=ROUNDING, atol=0)
    if reference == "paired":
        base = torch.tensor(table["base.denoising_loss"].to_pylist())
        torch.testing.assert_close(base[:8], torch.tensor(module.own)[:8], rtol=2 * ROUNDING, atol=0)
    flagged, watched = len(monitor.calibration.first_flagged), len(monitor.calibration.samples.row)
    assert watched > 40
    assert flagged <= 0.1 * watched
