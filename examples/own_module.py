"""memtrain's callbacks in a LightningModule of your own, which knows nothing of memtrain.

    python examples/own_module.py

The module below computes one scalar mean-squared error, as fine-tuning scripts do. That is enough to watch it with
`MemorizationMonitor(reference="paired")`, or with `reference=False`. With the one method `sample_loss`, samples are
compared with a profile of them under the base model (`reference=True`, the default), and flags are calibrated on
held-out samples (`True` and `"paired"`).

What a module may offer; all of it is optional:

| attribute | what it is | what for |
|---|---|---|
| `sample_loss(batch, timesteps, generator) -> (B,)` | each sample's loss, one forward | profile, held-out samples |
| `loss_weight(timesteps) -> (B,)`, or with a second parameter `batch` | what `training_step` multiplies each sample's \
loss by (:mod:`memtrain.monitoring.loss_weight`) | needed if it does, and no `sample_loss` is returned |
| `unconditional_text() -> (1, T, width)` | embeddings of the empty caption | guidance norms |
| `tokenizer` | of the captions | `TextImageDataModule` without one of its own, caption augmentation |
| `tokens(captions) -> fields` | whatever `encode_tokens` takes, `(B, ...)` each | `TextImageDataModule` |
| `encode_images(pixel_values) -> latents` | scaled latents | `TextImageDataModule(cache_latents=True)`, masks |
| `encode_tokens(fields) -> fields`, `encoder_fingerprint("images" or "text")` | embeddings; a name of the encoder's \
weights and configuration | `TextImageDataModule(cache=...)` |
| `text_encoder`, `vae`, `scheduler`, `noise_offset`, `input_perturbation` | the rest of the base model | a profile of \
one's own for each |
| `export_pipeline()`, `denoiser` | the trained pipeline, and what of it is trained | `PipelineExport` |
| `averaged_weights()` | a context in which the module holds averaged weights | `PipelineExport` |
| `{"loss": ..., "sample_loss": (B,)}` returned by `training_step` | unweighted losses | any other loss than below |
| `target` beside them, `(B, ...)` | what the denoiser's output is compared with | the same, `reference: paired` |
| `loss_mask` beside it, of its shape | how much each element of the error counts | the same, of masked losses |
| `text_encoder`, `encode_text(input_ids) -> (B, T, width)` | how captions are encoded | `reference: paired` where the \
text encoder is trained too |

Without `sample_loss`, the loss has to be the batch mean of squared errors, because each sample's part is read from its
gradient. Every batch is checked, and what cannot be read (L1, Huber, masks, undeclared weights, further terms) is
refused (:mod:`memtrain.monitoring.loss_check`). Optimization may be manual, with `manual_backward(loss)`, and
`training_step` may return None to leave a batch out.

What a batch may hold; it may also be a tuple, whose samples are named by their images
(:mod:`memtrain.monitoring.batch_fields`):

| field | what it is | what for |
|---|---|---|
| `key` | B strings or whole numbers that name the samples | better than a hash of images (`key_field`: another field) |
| `caption` | list of B strings, `""` where the caption was dropped from this visit | such visits are no evidence |
| `prompt_length` | `(B,)` tokens of the caption, BOS and EOS counted | calibration by length; groups of CLIP tokens |
| `prompt_mask` | `(B, T)` bool, true for words of the caption | groups of tokens with other text encoders |
| `input_ids`, and `latents` or `pixel_values` | `(B, ...)` | tell samples apart in the profile's cache |

For held-out samples, `trainer.fit(module, train, validation)` with two loaders is enough: those of the second are held
out. Of a data module they need, beside `train_dataloader`: `train_dataset`, `heldout_dataset` with `unique()`, and
`unique_dataloader(dataset)`; :mod:`memtrain.monitoring.data_protocol` says it all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.data.module import TextImageDataModule
from memtrain.data.selection import Duplicates


class MyFineTuning(LightningModule):
    """Somebody's fine-tuning."""

    def __init__(self, pretrained: str) -> None:
        super().__init__()
        pipeline = StableDiffusionPipeline.from_pretrained(pretrained, safety_checker=None, torch_dtype=torch.float32)
        self.unet = pipeline.unet.train()
        self.parts = (pipeline.vae, pipeline.text_encoder)
        self.tokenizer, self.scheduler = pipeline.tokenizer, pipeline.scheduler

    @torch.no_grad()
    def prepare(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Latents and text embeddings."""
        # Kept out of the module, whose parameters are trained, they have to be moved by hand; callbacks ask early.
        vae, text_encoder = (part.to(self.device) for part in self.parts)
        latents = vae.encode(batch["pixel_values"]).latent_dist.mode() * vae.config.scaling_factor
        return latents, text_encoder(batch["input_ids"])[0]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One scalar."""
        latents, text = self.prepare(batch)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (len(latents),), device=self.device)
        prediction = self.unet(self.scheduler.add_noise(latents, noise, timesteps), timesteps, text).sample
        return F.mse_loss(prediction, noise)

    def sample_loss(self, batch: dict[str, Any], timesteps: Tensor, generator: torch.Generator) -> Tensor:
        """Optional: the unweighted loss of each sample at given timesteps, one forward pass of the UNet."""
        latents, text = self.prepare(batch)
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        prediction = self.unet(self.scheduler.add_noise(latents, noise, timesteps), timesteps, text).sample
        return (prediction - noise).square().flatten(1).mean(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.unet.parameters(), lr=1e-4)


def main(
    path: str = "assets/clipart-pd.tar", *, folder: str = "runs/own_module", steps: int = 30, repeats: int = 100
) -> MemorizationMonitor:
    """A few steps on the embedded clip art, of which 12 pictures are repeated.

    Args:
        path: the data.
        folder: the run folder; the base model's profiles go beside it, so that further runs find them.
        steps: the number of optimizer steps.
        repeats: the number of visits of each of the 12 pictures in an epoch.
    """
    seed_everything(0)
    data = TextImageDataModule(path, resolution=64, duplicates=Duplicates(count=12, repeats=repeats))
    monitor = MemorizationMonitor(reference_folder=str(Path(folder).parent / "profiles"))
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        callbacks=[monitor, SampleSkipping()],
    )
    trainer.fit(MyFineTuning("assets/tiny-sd"), data)
    return monitor


if __name__ == "__main__":
    main()
