"""Training of a small KL autoencoder, for the embedded base model.

The loss has reconstruction in absolute and multi-scale terms and a light KL term (Rombach et al., "High-Resolution
Image Synthesis with Latent Diffusion Models", 2022, section 3.1). It has no perceptual and adversarial losses, which
need pretrained networks. The module exists so that `assets/tiny-sd` can be rebuilt. Users of real models never train
one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel
from lightning.pytorch import LightningModule
from torch import Tensor

from memtrain.training.schedule import with_warmup


class AutoencoderModule(LightningModule):
    """Fit an AutoencoderKL to images and export it with the right scaling factor.

    Args:
        widths: the channels of each level; each level after the first halves the image.
        latent_channels: the channels of the latents.
        norm_num_groups: the number of groups in group norms, which divides every width.
        learning_rate: the peak of the schedule.
        warmup_steps: the steps of linear warm-up before the cosine decay to zero.
        kl_weight: the weight of the KL term.
        ema_decay: the decay of the exported weight average.
        output_folder: the folder in which the autoencoder is saved at the end.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (24, 48, 96, 96),
        *,
        latent_channels: int = 8,
        norm_num_groups: int = 8,
        learning_rate: float = 1e-3,
        warmup_steps: int = 200,
        kl_weight: float = 1e-6,
        ema_decay: float = 0.999,
        output_folder: str = "runs/tiny_sd_autoencoder/vae",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate, self.warmup_steps, self.kl_weight = learning_rate, warmup_steps, kl_weight
        self.output_folder = Path(output_folder)
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=tuple(widths),
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=64,
        )
        self.ema = EMAModel(self.vae.parameters(), decay=ema_decay, foreach=True)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Reconstruct randomly flipped images."""
        images = batch["pixel_values"]
        generator = torch.Generator().manual_seed(self.global_step)
        flip = torch.rand(len(images), generator=generator).to(images.device) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        posterior = self.vae.encode(images).latent_dist
        output = self.vae.decode(posterior.sample()).sample.float()
        coarse = sum(F.l1_loss(F.avg_pool2d(output, k), F.avg_pool2d(images, k)) for k in (2, 4))
        gradient = sum(F.l1_loss(output.diff(dim=axis), images.diff(dim=axis)) for axis in (-1, -2))
        loss = F.l1_loss(output, images) + coarse + gradient + self.kl_weight * posterior.kl().mean()
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weight average."""
        super().optimizer_step(*args, **kwargs)
        self.ema.step(self.vae.parameters())

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the peak signal-to-noise ratio of reconstructions (dB), images in [0, 1]."""
        images = batch["pixel_values"]
        output = self.vae(images, sample_posterior=False).sample.float().clamp(-1, 1)
        error = ((output - images) / 2).square().flatten(1).mean(1)
        self.log("heldout/psnr", (-10 * error.log10()).mean(), prog_bar=True, batch_size=len(images))

    def on_fit_start(self) -> None:
        """Move the weight average to the device."""
        self.ema.to(self.device)

    def on_validation_epoch_start(self) -> None:
        """Validate the averaged weights."""
        self.ema.store(self.vae.parameters())
        self.ema.copy_to(self.vae.parameters())

    def on_validation_epoch_end(self) -> None:
        """Go back to the live weights."""
        self.ema.restore(self.vae.parameters())

    def configure_optimizers(self) -> Any:
        """Return AdamW with warm-up and cosine decay."""
        optimizer = torch.optim.AdamW(self.vae.parameters(), lr=self.learning_rate, weight_decay=1e-4)
        return with_warmup(optimizer, "cosine", self.warmup_steps, int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the weight average into the checkpoint."""
        checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the weight average from the checkpoint."""
        self.ema.load_state_dict(checkpoint["ema"])

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Save the averaged autoencoder with `scaling_factor` = 1 / std of the training latents."""
        if not self.trainer.is_global_zero:
            return
        self.ema.copy_to(self.vae.parameters())
        self.vae.eval()
        loader = self.trainer.datamodule.unique_dataloader(self.trainer.datamodule.train_dataset)  # type: ignore[attr-defined]
        latents = [self.vae.encode(batch["pixel_values"].to(self.device)).latent_dist.mode() for batch in loader]
        self.vae.register_to_config(scaling_factor=round(1 / torch.cat(latents).float().std().item(), 5))
        self.vae.save_pretrained(self.output_folder)
