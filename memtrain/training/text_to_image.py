"""The LightningModule that fine-tunes a latent diffusion model on captioned images.

The objective is the denoising loss of Ho et al. (2020) in latent space (Rombach et al., 2022), kept per sample until
the last line. Timesteps and noise are a function of (seed, batch counter, rank). So two runs that differ only in their
callbacks see the same noise, and a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from memtrain.errors import ConfigurationError
from memtrain.files.resume_contract import check_settings
from memtrain.functional.keyed_draws import mixed_seed
from memtrain.models.fingerprint import encoder_fingerprint
from memtrain.training.averaged_module import AveragedModule
from memtrain.training.base_model import BaseModel, base_model
from memtrain.training.checkpoint_contents import KEY, check_contents, keep_trained
from memtrain.training.continued_training import say, settings_of, with_length
from memtrain.training.denoising import Denoised, denoise
from memtrain.training.execution import Execution
from memtrain.training.lora import LoRA
from memtrain.training.lora_file import save_adapters
from memtrain.training.objective import Objective
from memtrain.training.pipelines.base import TEXT_FIELDS
from memtrain.training.pipelines.find import load_trainable
from memtrain.training.schedule import Schedule, optimizer_of, with_warmup
from memtrain.training.sharding import check_strategy, shard


class TextToImageModule(AveragedModule):
    """Fine-tune the denoiser of a text-to-image pipeline. The autoencoder and the text encoders stay frozen.

    Args:
        pretrained: a diffusers pipeline folder, a single-file checkpoint or a hub name, or a base model with further
            options.
        lora: the options of adapters, which are trained instead of the weights.
        objective: the options of the loss.
        learning_rate: the peak of the schedule; by default 1e-5, or the learning rate of `optimizer`.
        schedule: the schedule after the warm-up: `constant`, or a decay to zero by `cosine`, `linear` and others
            (:mod:`memtrain.training.schedule`), or any scheduler of torch by class path.
        warmup_steps: the optimizer steps of linear warm-up.
        optimizer: the optimizer by class path; by default AdamW.
        ema_decay: the decay of the exported weight average; None exports the last weights.
        train_text_encoder: whether to train the text encoders too (the embedded base model needs it).
        execution: options that trade time, memory and precision.
        seed: the seed of timesteps and noise; by default the seed of `seed_everything`.

    The module logs `train/loss` (the mean squared error over the batch, before any re-weighting) and `heldout/loss`
    (the same for held-out samples under the averaged weights, with fixed timesteps and noise in every validation).
    """

    def __init__(
        self,
        pretrained: str | BaseModel,
        *,
        lora: LoRA | None = None,
        objective: Objective | None = None,
        learning_rate: float | None = None,
        schedule: Schedule | Callable[[Optimizer], LRScheduler] = "constant",
        warmup_steps: int = 0,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        ema_decay: float | None = 0.9999,
        train_text_encoder: bool = False,
        execution: Execution | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.lora, self.objective = lora, objective or Objective()
        if learning_rate is not None and not 0 <= learning_rate < math.inf:
            raise ConfigurationError(
                f"learning_rate={learning_rate}",
                expected="a number of at least 0",
                remedy="correct --model.init_args.learning_rate, for instance 1e-5 for all weights",
            )
        self.learning_rate, self.schedule, self.warmup_steps = learning_rate, schedule, warmup_steps
        self.optimizer_class, self.execution = optimizer, execution or Execution()
        self.ema_decay = ema_decay
        # The settings that a checkpoint of this run holds, and the settings of the checkpoint that this run continues.
        self.settings: dict[str, Any] | None = None
        self._continued: dict[str, Any] | None = None
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.pretrained = base_model(pretrained).path
        self.execution.check(adapters=lora is not None)
        if lora is not None:
            lora.check(train_text_encoder=train_text_encoder)
        self.parts = parts = load_trainable(
            pretrained, dtypes=self.execution.loaded_types(adapters=lora is not None, trained_text=train_text_encoder)
        )
        self.prediction_type, self.scheduler = parts.prediction_type, parts.scheduler
        # These attributes identify a reference profile.
        self.text_encoders, self.conditioning = parts.text_encoders, parts.conditioning
        self.noise_offset = self.objective.noise_offset
        self.input_perturbation = self.objective.input_perturbation
        self._snr = parts.signal_to_noise_ratio(torch.arange(parts.steps))
        self.objective.check(self.prediction_type, self._snr)
        parts.vae.requires_grad_(False).eval()
        for encoder in parts.text_encoders.values():
            encoder.requires_grad_(train_text_encoder).eval()
        self.denoiser = parts.denoiser.train()
        self.execution.prepare(parts, adapters=lora is not None)
        if lora is not None:
            lora.inject(parts)
            # Checkpoints lack the frozen weights. `check_contents` is as strict about the others.
            self.strict_loading = False
        # A tuple keeps frozen parts out of the module tree, and so out of checkpoints, DDP and the optimizer.
        self._frozen = (parts.vae, *parts.text_encoders.values())
        encoders = {
            name: one for name, one in parts.text_encoders.items() if any(p.requires_grad for p in one.parameters())
        }
        if encoders:
            self.trained_text_encoders = nn.ModuleDict(encoders)
        self.execution.finish(self.trained())
        self.ema = self.execution.average(self.trained(), ema_decay)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the text that attention reads."""
        return self.parts.tokenizer

    @property
    def vae(self) -> Any:
        """The frozen autoencoder."""
        return self.parts.vae

    @property
    def text_encoder(self) -> Any:
        """The first text encoder, frozen unless it is trained."""
        return next(iter(self.parts.text_encoders.values()))

    def setup(self, stage: str) -> None:
        """Refuse weights in half precision, because the frozen parts and the noise are in full precision."""
        if str(self.trainer.precision) in ("16-true", "bf16-true"):
            raise ConfigurationError(
                f"TextToImageModule cannot train with weights in half precision (precision={self.trainer.precision!r})",
                expected="trained weights (also of adapters) in full precision, which keeps small updates",
                remedy="set trainer.precision to bf16-mixed (or 16-mixed), which computes in half precision; to store "
                "frozen "
                "weights (with `lora` the base) in half precision, set execution.frozen_dtype to bfloat16",
            )
        check_strategy(self, self.trainer)

    def configure_model(self) -> None:
        """Spread the denoiser over processes, if the strategy is Lightning's for FSDP2."""
        shard(self)

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
        """Encode pixel values `(B, 3, H, W)` to scaled latents (the posterior's mode) `(B, C, h, w)`."""
        # Data modules call this before Lightning moves the module, with pixels on the device of training.
        self.vae.to(pixel_values.device)
        return self.parts.encode_images(pixel_values)

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Make the fields of a batch that hold the token ids of captions, on the CPU."""
        return self.parts.tokens(captions)

    def encode_tokens(self, tokens: dict[str, Any]) -> dict[str, Tensor]:
        """Make embeddings from token ids, with the names of :mod:`memtrain.training.pipelines.base`."""
        device = tokens["input_ids"].device
        for encoder in self.parts.text_encoders.values():
            # Callbacks measure before on_fit_start moves the frozen parts.
            if next(encoder.parameters()).device != device and not any(p.requires_grad for p in encoder.parameters()):
                encoder.to(device)
        return self.parts.encode_text(tokens)

    def encoder_fingerprint(self, what: Literal["images", "text"]) -> str:
        """Return a name of the autoencoder or of the text encoders, which identifies their results."""
        parts: dict[str, nn.Module] = {"vae": self.vae} if what == "images" else self.parts.text_encoders
        length = f" of {self.parts.max_sequence_length}" if what == "text" else ""
        return encoder_fingerprint(f"{type(self.parts).__name__} {what}{length}", parts)

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Make text embeddings `(B, T, width)` from token ids `(B, T)`, for pipelines with one text encoder."""
        return self.encode_tokens({"input_ids": input_ids})["text_embeddings"]

    def unconditional_text(self) -> dict[str, Tensor]:
        """Encode the empty caption: `text_embeddings` `(1, T, width)` and further fields."""
        return self.encode_tokens({name: value.to(self.device) for name, value in self.tokens([""]).items()})

    def loss_weight(self, timesteps: Tensor, batch: Any = None) -> Tensor:
        """Return the factor of each sample's loss, `(B,)`, from its timestep and from `weight` in the batch."""
        weight = self.objective.weight(self.parts.signal_to_noise_ratio(timesteps), self.prediction_type)
        return weight * self.objective.batch_weight(batch, weight)

    def sample_loss(self, batch: dict[str, Any], timesteps: Tensor, generator: torch.Generator) -> Tensor:
        """Compute the unweighted squared error of each sample; for a masked sample, of the part that its mask shows.

        Args:
            batch: a batch as in :mod:`memtrain.data.source`.
            timesteps: the timesteps, `(B,)` int64.
            generator: the source of the noise, on the module's device.

        Returns:
            The errors, `(B,)`, with a graph if gradients are enabled.
        """
        return self._denoise(batch, timesteps, generator).sample_loss

    def _denoise(
        self, batch: dict[str, Any], timesteps: Tensor, generator: torch.Generator, *, perturbed: bool = True
    ) -> Denoised:
        known = "text_embeddings" in batch
        with self.lora.dropout_draws(generator) if self.lora is not None else nullcontext():
            fields = {name: batch[name] for name in TEXT_FIELDS if name in batch}
            return denoise(
                self.parts,
                self.objective,
                latents=batch["latents"] if "latents" in batch else self.encode_images(batch["pixel_values"]),
                text=fields if known else self.encode_tokens(batch),
                timesteps=timesteps,
                generator=generator,
                batch=batch,
                dtype=self.execution.input_dtype(adapters=self.lora is not None),
                perturbed=perturbed,
            )

    def step_generator(self, *counters: int) -> torch.Generator:
        """Return a generator on the module's device, seeded by (seed, counters)."""
        return torch.Generator(self.device).manual_seed(mixed_seed(self.seed, *counters))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Compute the batch mean of the weighted per-sample loss."""
        generator = self.step_generator(self.trainer.fit_loop.total_batch_idx, self.global_rank)
        count = len(batch["input_ids"])
        self._snr = self._snr.to(self.device)
        timesteps = self.parts.shifted(self.objective.draw_timesteps(count, generator=generator, snr=self._snr))
        denoised = self._denoise(batch, timesteps, generator)
        losses, handed = denoised.losses(self.parts, self.objective, batch=batch)
        loss = (self.loss_weight(timesteps, batch) * losses).mean()
        self.log("train/loss", denoised.sample_loss.detach().mean(), prog_bar=True, batch_size=count)
        return {"loss": loss, "key": batch["key"], **handed}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the loss of held-out samples under the averaged weights, at four fixed timesteps each."""
        count = len(batch["input_ids"])
        steps = self.parts.steps
        for index in range(4):
            generator = self.step_generator(batch_idx, index)
            start = torch.randint(steps // 4, (count,), generator=generator, device=self.device)
            # Without input perturbation, as in the use of the model.
            loss = self._denoise(batch, start + index * (steps // 4), generator, perturbed=False).sample_loss
            self.log("heldout/loss", loss.mean(), prog_bar=True, batch_size=count, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return the optimizer with the schedule."""
        optimizer = optimizer_of(self.trained(), self.optimizer_class, learning_rate=self.learning_rate)
        total = int(self.trainer.estimated_stepping_batches)
        self.settings = with_length(settings_of(self), total)
        if self._continued is not None:
            length = {"total_steps": self.settings.get("total_steps")}
            say(self, check_settings(self._continued, length if length["total_steps"] else {}))
        return with_warmup(optimizer, self.schedule, self.warmup_steps, total)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained weights and the weight average."""
        keep_trained(self, checkpoint, pretrained=self.pretrained)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another training, and load the weight average."""
        check_contents(self, checkpoint)
        self._continued = checkpoint.get(KEY, {}).get("settings")
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint["ema"])

    def save_adapters(self, folder: Path) -> None:
        """Write the adapters in their present state, in diffusers' form."""
        assert self.lora is not None
        save_adapters(self.parts.pipeline, folder, timestep_rank=self.lora.timestep_rank)

    def export_pipeline(self) -> Any:
        """Return a pipeline for sampling that shares this module's parts in their present state."""
        return self.parts.export()
