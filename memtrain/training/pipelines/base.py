"""The facts that training needs about a family of text-to-image pipelines, in addition to `models/backbones`.

A family is one file with one subclass of :class:`TrainablePipeline`, found by walking this package. The class makes
token ids from captions, embeddings from token ids and latents from images, and calls the denoiser once on noisy
latents. All other steps (noise, target, loss, adapters, averages) are the same for all families.

These methods and a batch exchange fields of `(B, ...)` tensors:

| fields | made by | meaning |
|---|---|---|
| `input_ids`, `input_ids_2`, ... | `tokens` | `(B, T)` int64, of each tokenizer; the first is read by attention |
| `prompt_length` | `tokens` | `(B,)` int64, tokens of the caption in `input_ids`, with the marks of begin and end |
| `prompt_mask` | `tokens` | `(B, T)` bool, words of the caption, if `clip_layout` is false |
| `text_embeddings` | `encode_text` | `(B, T, width)`, read by the denoiser's attention |
| `pooled_embeddings` | `encode_text` | `(B, width)`, if the denoiser also gets one vector of the whole caption |
| `text_mask` | `encode_text` | `(B, T)`, the tokens that count, if the denoiser masks padding |
| `original_size`, `crop_top_left`, `target_size` | the data | `(B, 2)` int64, rows and columns; if absent, uncropped |

`T` of `text_embeddings` is that of the denoiser's text, even if several encoders make it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from memtrain.errors import ConfigurationError
from memtrain.functional.diffusion import noisy_and_target, signal_to_noise_ratio
from memtrain.models.encoding import encode_images
from memtrain.models.stock_pipeline import denoiser_of, most_tokens

TEXT_FIELDS = ("text_embeddings", "pooled_embeddings", "text_mask")
"""Fields of a batch that hold an encoded caption."""


class TrainablePipeline(ABC):
    """The parts of one pipeline, and their use in training.

    Args:
        pipeline: a loaded pipeline, on any device.
        max_sequence_length: the number of tokens of a T5 or Gemma encoder; by default the number that the pipeline's
            own call encodes.
        guidance: the guidance strength that a denoiser with such an input gets in training.

    Attributes:
        classes: the names of the diffusers pipeline classes of this family.
        lora_targets: the layers of the denoiser that get adapters by default, in peft's names of targets.
        prediction_type: `epsilon`, `v_prediction`, or `flow_prediction` for flow matching.
        scheduler: the noise schedule of training.
    """

    classes: ClassVar[tuple[str, ...]]
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, pipeline: Any, *, max_sequence_length: int | None = None, guidance: float = 1.0) -> None:
        self.pipeline, self.guidance = pipeline, guidance
        self.max_sequence_length = max_sequence_length or most_tokens(pipeline)
        self.require_parts()
        self.scheduler = self.training_scheduler()
        flow = "FlowMatch" in type(self.scheduler).__name__
        self.prediction_type = "flow_prediction" if flow else str(self.scheduler.config["prediction_type"])

    # Parts

    @property
    def denoiser(self) -> Any:
        """The network that is trained."""
        return denoiser_of(self.pipeline)

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.pipeline.vae

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """The text encoders, by their names in the pipeline (`text_encoder`, `text_encoder_2`, ...)."""
        return self._parts("text_encoder")

    @property
    def tokenizers(self) -> dict[str, Any]:
        """The tokenizers, by their names in the pipeline."""
        return self._parts("tokenizer")

    @property
    def needed_parts(self) -> tuple[str, ...]:
        """The parts that this family needs, in addition to denoiser and scheduler."""
        return ("vae", "text_encoder", "tokenizer")

    def require_parts(self) -> None:
        """Refuse a pipeline that lacks a part.

        Raises:
            ConfigurationError: with the missing parts.
        """
        missing = [part for part in self.needed_parts if getattr(self.pipeline, part, None) is None]
        if missing:
            raise ConfigurationError(
                f"This {type(self.pipeline).__name__} has no {', '.join(missing)}",
                expected=f"a pipeline with {', '.join(self.needed_parts)}",
                remedy="load the whole pipeline",
            )

    def _parts(self, name: str) -> dict[str, Any]:
        parts = {part: getattr(self.pipeline, part, None) for part in (name, f"{name}_2", f"{name}_3")}
        return {part: value for part, value in parts.items() if value is not None}

    @property
    def conditioning(self) -> dict[str, float]:
        """The denoiser's further inputs beyond caption and sizes, for JSON; losses depend on them."""
        return {}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the text that attention reads."""
        return self.pipeline.tokenizer

    # Text and images

    @abstractmethod
    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Make `input_ids`, `prompt_length` and similar fields from B captions, on the CPU."""

    @abstractmethod
    def encode_text(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make `TEXT_FIELDS` from token ids on the device of the text encoders, with a graph if these are trained.

        Args:
            tokens: the fields of :meth:`tokens`; others are ignored.
        """

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Encode pixel values `(B, 3, H, W)` to scaled latents (the posterior's mode) `(B, C, h, w)`."""
        return encode_images(self.vae, pixel_values)

    # The denoising problem

    @abstractmethod
    def training_scheduler(self) -> Any:
        """Return the noise schedule of training, from the pipeline's own configuration."""

    @property
    def steps(self) -> int:
        """The number of timesteps of the schedule."""
        return int(self.scheduler.config["num_train_timesteps"])

    def noise_level(self, timesteps: Tensor) -> Tensor:
        """Return ᾱ of each timestep, `(B,)`, or σ = t / steps in flow matching."""
        if self.prediction_type == "flow_prediction":
            return timesteps.float() / self.steps
        return self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]

    def signal_to_noise_ratio(self, timesteps: Tensor) -> Tensor:
        """Return the signal-to-noise ratio, `(B,)`; ((1 − σ) / σ)² in flow matching."""
        if self.prediction_type == "flow_prediction":
            sigma = self.noise_level(timesteps).clamp(min=1e-6)
            return ((1 - sigma) / sigma).square()
        return signal_to_noise_ratio(self.scheduler.alphas_cumprod, timesteps)

    def noisy_and_target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the denoiser's input and its target, both `(B, C, h, w)`."""
        level = self.noise_level(timesteps)
        return noisy_and_target(latents, noise, level, prediction_type=self.prediction_type)

    def shifted(self, timesteps: Tensor) -> Tensor:
        """Return the places of drawn timesteps on the schedule of training, `(B,)` int64.

        A draw t counts places on the evenly spaced schedule from its clean end. It is number `steps` − 1 − t of the
        flow scheduler's descending timesteps. A static `shift` s has moved these: σ becomes s σ / (1 + (s − 1) σ)
        (Esser et al., "Scaling Rectified Flow Transformers", 2024; diffusers' train_dreambooth_lora_sd3.py draws in
        this way). A shift that depends on the resolution (`use_dynamic_shifting`) moves nothing there, and nothing
        here. Results are rounded to whole timesteps from 1 to `steps` − 1. Other schedules have no shift.

        Args:
            timesteps: the timesteps that a sampler drew, `(B,)` int64.
        """
        if self.prediction_type != "flow_prediction":
            return timesteps
        schedule = self.scheduler.timesteps.to(timesteps.device)
        return schedule[self.steps - 1 - timesteps].round().to(timesteps.dtype).clamp(1, self.steps - 1)

    @abstractmethod
    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], *, batch: Mapping[str, Any]
    ) -> Tensor:
        """Return the denoiser's answer `(B, C, h, w)`, from exactly one call.

        Args:
            noisy: the noisy latents, `(B, C, h, w)`.
            timesteps: the timesteps, `(B,)` int64.
            text: the `TEXT_FIELDS`.
            batch: the batch, which may have `original_size`, `crop_top_left` and `target_size`.
        """

    def size_of(self, name: str, noisy: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return rows and columns in pixels, `(B, 2)`: the batch's, or else those of the images behind `noisy`."""
        if name in batch:
            size: Tensor = batch[name].to(noisy.device)
            return size
        factor = int(self.pipeline.vae_scale_factor)
        # Filled on the device, so that nothing waits for a copy.
        sides = [torch.full((len(noisy),), side * factor, device=noisy.device) for side in noisy.shape[-2:]]
        return torch.stack(sides, dim=1)

    def as_output(self, values: Tensor) -> Tensor:
        """Return `(B, C, h, w)` values of each latent in the form of the denoiser's output, such as patches."""
        return values

    # The trained model

    def export(self) -> Any:
        """Return a pipeline for sampling that shares these modules."""
        return self.pipeline


def count_words(mask: Tensor) -> Tensor:
    """Count the tokens of each caption, `(B,)` int64, in an attention mask `(B, T)`."""
    return mask.sum(dim=1).to(torch.int64)


def words(tokenizer: Any, input_ids: Tensor, mask: Tensor) -> Tensor:
    """Return a mask `(B, T)` bool of the caption's own tokens, without the marks of its beginning and end.

    Args:
        tokenizer: the tokenizer that made them.
        input_ids: the token ids, `(B, T)`.
        mask: the attention mask `(B, T)`, true for the caption with its marks.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    marks = {getattr(tokenizer, name, None) for name in names} - {None}
    return mask.bool() & ~torch.isin(input_ids, torch.tensor(sorted(marks), dtype=input_ids.dtype))
