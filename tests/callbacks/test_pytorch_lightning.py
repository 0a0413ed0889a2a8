"""`pytorch_lightning`, the other package: its trainer, modules and command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.errors import ConfigurationError
from memtrain.records import read_steps
from tests.callbacks.test_monitor import WEIGHT, FixedWeights, batches

pl: Any = pytest.importorskip("pytorch_lightning")


class Theirs(pl.LightningModule):  # type: ignore[misc]
    """Somebody's module."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel.from_config(unet.config)
        self.unet.load_state_dict(unet.state_dict())
        self.noise = DDPMScheduler()
        self.true: list[float] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        noise, timesteps = torch.randn(batch["latents"].shape), torch.randint(1000, (4,))
        noisy = self.noise.add_noise(batch["latents"], noise, timesteps)
        loss = F.mse_loss(self.unet(noisy, timesteps, batch["text"]).sample, noise)
        self.true.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def trainer(folder: Path, callbacks: list[Any]) -> Any:
    return pl.Trainer(
        default_root_dir=folder,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=2,
    )


def test_its_trainer_and_modules_are_watched(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    module = Theirs(pipeline.unet)
    trainer(tmp_path, [MemorizationMonitor(reference="paired"), FixedWeights()]).fit(module, batches())
    rows = read_steps(tmp_path / "records").to_pylist()
    losses = torch.tensor([row["denoising_loss"] for row in rows]).view(8, 4).mean(1)
    torch.testing.assert_close(losses, torch.tensor(module.true), rtol=1e-4, atol=0)
    assert all(row["weight"] == WEIGHT[row["key"]] for row in rows)
    assert all(row["base.denoising_loss"] > 0 for row in rows[:4])
    assert (tmp_path / "flagged.csv").exists()


def test_what_is_refused_in_one_package_is_refused_in_the_other(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="no MemorizationMonitor"):
        trainer(tmp_path, [SampleSkipping()]).fit(Theirs(pipeline.unet), batches())


SCRIPT = """
import sys
from pathlib import Path
import torch
from pytorch_lightning.cli import LightningCLI
from diffusers import UNet2DConditionModel
from tests.callbacks.test_pytorch_lightning import Theirs, batches

class Module(Theirs):
    def __init__(self, pretrained: str):
        super().__init__(UNet2DConditionModel.from_pretrained(pretrained, subfolder="unet"))

    def train_dataloader(self):
        return batches()

if __name__ == "__main__":
    LightningCLI(Module, save_config_callback=None)
"""

YAML = """
model: {{pretrained: {pretrained}}}
trainer:
  default_root_dir: {folder}
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  max_epochs: 1
  callbacks:
  - class_path: memtrain.callbacks.monitor.MemorizationMonitor
    init_args: {{reference: paired, key_field: key}}
  - class_path: memtrain.callbacks.loss_skipping.LossSkipping
  - class_path: memtrain.callbacks.sample_skipping.SampleSkipping
"""


@pytest.mark.slow
def test_its_command_line_takes_them_from_yaml(pipeline_folder: Path, tmp_path: Path) -> None:
    script, config, root = tmp_path / "main.py", tmp_path / "config.yaml", Path(__file__).parents[2]
    # The package of the script's own imports comes first, as in any script that uses its command line.
    script.write_text(SCRIPT)
    config.write_text(YAML.format(pretrained=pipeline_folder, folder=tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script), "fit", "--config", str(config)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_steps(tmp_path / "records").num_rows == 16
