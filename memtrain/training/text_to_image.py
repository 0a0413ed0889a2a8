"""The LightningModule that fine-tunes a latent diffusion model on captioned images.

The objective is the denoising loss of Ho et al. (2020) in latent space (Rombach et al., 2022), kept per sample until
the last line. Timesteps and noise are a function of (seed, batch counter, rank), so two runs that differ only in their
callbacks see the same noise, and a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch import LightningModule
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.functional.diffusion import min_snr_weight, per_sample_mse, signal_to_noise_ratio
from memtrain.functional.keyed_draws import mixed_seed
from memtrain.functional.tokens import tokenize
from memtrain.models.encoding import encode_images, encode_tokens
from memtrain.models.pipeline import Components, load_components
from memtrain.training.schedule import Schedule, with_warmup


class TextToImageModule(LightningModule):
    """Fine-tune the UNet of a Stable Diffusion pipeline; autoencoder and text encoder stay frozen.

    Args:
        pretrained: a diffusers pipeline folder or hub name.
        learning_rate: peak of the schedule.
        weight_decay: of AdamW.
        schedule: after the warm-up, `constant` or `cosine` to zero.
        warmup_steps: optimizer steps of linear warm-up.
        ema_decay: decay of the exported weight average; None exports the last weights.
        min_snr_gamma: weight the loss by min-SNR-γ (Hang et al., 2023); None weights all timesteps alike.
        noise_offset: strength of a per-channel constant added to the noise.
        train_text_encoder: train the text encoder too (the embedded base model needs it).
        gradient_checkpointing: trade time for memory (non-reentrant).
        seed: of timesteps and noise; default `seed_everything`'s.

    Logged metrics: `train/loss` (mean over the batch, before any re-weighting), `heldout/loss` (mean over held-out
    samples under the averaged weights, at timesteps and noise that are the same in every validation).
    """

    def __init__(
        self,
        pretrained: str,
        *,
        learning_rate: float = 1e-5,
        weight_decay: float = 1e-2,
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        ema_decay: float | None = 0.9999,
        min_snr_gamma: float | None = None,
        noise_offset: float = 0.0,
        train_text_encoder: bool = False,
        gradient_checkpointing: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.schedule, self.warmup_steps = schedule, warmup_steps
        self.min_snr_gamma, self.noise_offset = min_snr_gamma, noise_offset
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        components = load_components(pretrained)
        self.prediction_type = str(components.scheduler.config["prediction_type"])
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ConfigurationError(
                f"{pretrained!r} predicts {self.prediction_type!r}",
                expected="epsilon or v_prediction",
                remedy="fine-tune another base model",
            )
        self.denoiser = components.denoiser.to(memory_format=torch.channels_last).train()
        if gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self.tokenizer, self.scheduler = components.tokenizer, components.scheduler
        components.vae.requires_grad_(False).eval()
        components.text_encoder.requires_grad_(train_text_encoder)
        # A tuple keeps frozen parts out of the module tree, and so out of checkpoints, DDP and the optimizer.
        self._frozen = (components.vae, components.text_encoder.eval())
        if train_text_encoder:
            self.trained_text_encoder = components.text_encoder
        self.ema = None if ema_decay is None else EMAModel(self.parameters(), decay=ema_decay, foreach=True)

    @property
    def vae(self) -> Any:
        """The frozen autoencoder."""
        return self._frozen[0]

    @property
    def text_encoder(self) -> Any:
        """The text encoder, frozen unless `train_text_encoder`."""
        return self._frozen[1]

    def setup(self, stage: str) -> None:
        """Refuse weights in half precision, beside which the frozen parts and the noise are in full precision."""
        if str(self.trainer.precision) in ("16-true", "bf16-true"):
            raise ConfigurationError(
                f"TextToImageModule cannot train with weights in half precision (precision={self.trainer.precision!r})",
                expected="weights in full precision, to which small updates are not lost",
                remedy="set trainer.precision to bf16-mixed (or 16-mixed), which computes in half precision",
            )

    def on_fit_start(self) -> None:
        """Move the frozen parts and the weight average to the device."""
        self._place()

    def _place(self) -> None:
        for part in self._frozen:
            part.to(self.device)
        if self.ema is not None:
            self.ema.to(self.device)

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Scaled latents (the posterior's mode) `(B, C, h, w)` of pixel values `(B, 3, H, W)`."""
        # Data modules ask before Lightning has moved this module, with pixels that are where training will be.
        self.vae.to(pixel_values.device)
        return encode_images(self.vae, pixel_values)

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Text embeddings `(B, T, width)` of token ids `(B, T)`."""
        # Callbacks measure before on_fit_start has moved what is frozen.
        if self.text_encoder.device != input_ids.device and self.text_encoder in self._frozen:
            self.text_encoder.to(input_ids.device)
        return encode_tokens(self.text_encoder, input_ids)

    def unconditional_text(self) -> Tensor:
        """Text embeddings `(1, T, width)` of the empty caption."""
        input_ids, _ = tokenize(self.tokenizer, [""])
        return self.encode_text(input_ids.to(self.device))

    def loss_weight(self, timesteps: Tensor) -> Tensor:
        """Weight of the loss at each timestep, `(B,)`; ones without min-SNR."""
        if self.min_snr_gamma is None:
            return torch.ones_like(timesteps, dtype=torch.float32)
        snr = signal_to_noise_ratio(self.scheduler.alphas_cumprod, timesteps)
        return min_snr_weight(snr, self.min_snr_gamma, self.prediction_type)

    def sample_loss(self, batch: dict[str, Any], timesteps: Tensor, generator: torch.Generator) -> Tensor:
        """Unweighted denoising loss of each sample.

        Args:
            batch: as :mod:`memtrain.data.source` describes.
            timesteps: `(B,)` int64.
            generator: source of the noise, on the module's device.

        Returns:
            `(B,)`, with a graph when gradients are enabled.
        """
        latents = batch["latents"] if "latents" in batch else self.encode_images(batch["pixel_values"])
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        if self.noise_offset:
            shape = (*latents.shape[:2], 1, 1)
            noise = noise + self.noise_offset * torch.randn(shape, generator=generator, device=latents.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        is_velocity = self.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(latents, noise, timesteps) if is_velocity else noise
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        prediction = self.denoiser(noisy, timesteps, self.encode_text(batch["input_ids"])).sample
        return per_sample_mse(prediction, target)

    def step_generator(self, *counters: int) -> torch.Generator:
        """A generator on the module's device, seeded by (seed, counters)."""
        return torch.Generator(self.device).manual_seed(mixed_seed(self.seed, *counters))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The batch mean of the weighted per-sample loss."""
        generator = self.step_generator(self.trainer.fit_loop.total_batch_idx, self.global_rank)
        count = len(batch["input_ids"])
        steps = int(self.scheduler.config["num_train_timesteps"])
        timesteps = torch.randint(steps, (count,), generator=generator, device=self.device)
        sample_loss = self.sample_loss(batch, timesteps, generator)
        loss = (self.loss_weight(timesteps) * sample_loss).mean()
        self.log("train/loss", sample_loss.detach().mean(), prog_bar=True, batch_size=count)
        return {"loss": loss, "key": batch["key"]}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weight average with each optimizer step, so that a checkpoint of this step holds it."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.step(self.parameters())

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the context the module holds the averaged weights, if it keeps an average."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters())
        self.ema.copy_to(self.parameters())
        try:
            yield
        finally:
            self.ema.restore(self.parameters())

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss of held-out samples under the averaged weights, at four fixed timesteps each."""
        count = len(batch["input_ids"])
        steps = int(self.scheduler.config["num_train_timesteps"])
        for index in range(4):
            generator = self.step_generator(batch_idx, index)
            start = torch.randint(steps // 4, (count,), generator=generator, device=self.device)
            loss = self.sample_loss(batch, start + index * (steps // 4), generator)
            self.log("heldout/loss", loss.mean(), prog_bar=True, batch_size=count, sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        """Validate the averaged weights."""
        self._averaged = self.averaged_weights()
        self._averaged.__enter__()

    def on_validation_epoch_end(self) -> None:
        """Go back to the live weights."""
        self._averaged.__exit__(None, None, None)

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule; replace both with LightningCLI's --optimizer and --lr_scheduler."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        return with_warmup(optimizer, self.schedule, self.warmup_steps, steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the weight average."""
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the weight average up again."""
        if self.ema is not None and "ema" in checkpoint:
            self.ema.load_state_dict(checkpoint["ema"])

    def components(self) -> Components:
        """The parts as they are now, for a pipeline."""
        return Components(self.denoiser, self.vae, self.text_encoder, self.tokenizer, self.scheduler)
