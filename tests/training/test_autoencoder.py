"""The autoencoder module trains, logs, resumes its average and exports a usable scaling factor."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from lightning.pytorch import Trainer

from memtrain.data.module import TextImageDataModule
from memtrain.training.autoencoder import AutoencoderModule


def test_a_short_run_exports_latents_of_unit_scale(write_folder: Callable[..., Path], tmp_path: Path) -> None:
    module = AutoencoderModule(
        (8, 8, 8), latent_channels=2, norm_num_groups=4, warmup_steps=1, output_folder=str(tmp_path / "vae")
    )
    data = TextImageDataModule(str(write_folder(12)), resolution=16, batch_size=4)
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    assert torch.isfinite(trainer.callback_metrics["heldout/psnr"])
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    loader = data.unique_dataloader(data.train_dataset)
    with torch.no_grad():
        latents = torch.cat([vae.encode(batch["pixel_values"]).latent_dist.mode() for batch in loader])
    assert (latents * vae.config.scaling_factor).std().item() == pytest.approx(1, abs=1e-3)
    assert latents.shape[1:] == (2, 4, 4)
    again = AutoencoderModule((8, 8, 8), latent_channels=2, norm_num_groups=4)
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)
    again.on_load_checkpoint(checkpoint)
    assert again.ema.optimization_step == 3
