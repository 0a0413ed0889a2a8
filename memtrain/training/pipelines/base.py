"""What training has to know about a family of text-to-image pipelines, beside its backbone in `models/backbones`.

A family is one file with one subclass of :class:`TrainablePipeline`, found by walking this package. It makes token ids
of captions, embeddings of token ids, latents of images, and calls the denoiser once on noisy latents. All else
(noise, target, loss, adapters, averages) is the same for all families.

What travels between these methods, and in a batch, are fields of `(B, ...)` tensors:

| fields | made by | meaning |
|---|---|---|
| `input_ids`, `input_ids_2`, ... | `tokens` | `(B, T)` int64, of each tokenizer; the first is of what attention reads |
| `prompt_length` | `tokens` | `(B,)` int64, tokens of the caption in `input_ids`, marks of begin and end included |
| `prompt_mask` | `tokens` | `(B, T)` bool, words of the caption, where `clip_layout` is false |
| `text_embeddings` | `encode_text` | `(B, T, width)`, what the denoiser's attention reads |
| `pooled_embeddings` | `encode_text` | `(B, width)`, where the denoiser is given one vector of the whole caption, too |
| `text_mask` | `encode_text` | `(B, T)`, which tokens count, where the denoiser masks padding |
| `original_size`, `crop_top_left`, `target_size` | the data | `(B, 2)` int64, rows and columns; absent: as it was |

`T` of `text_embeddings` is that of the denoiser's text, also where it comes from several encoders.
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
    """The parts of one pipeline, and how they are used in training.

    Args:
        pipeline: loaded, on any device.
        max_sequence_length: tokens of a T5 or Gemma encoder; default as many as the pipeline's own call encodes.
        guidance: what a denoiser that is told the strength of its guidance is told in training.

    Attributes:
        classes: names of the diffusers pipeline classes of this family.
        lora_targets: layers of the denoiser that get adapters by default, as peft names targets.
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
        """Parts that this family cannot do without, beside denoiser and scheduler."""
        return ("vae", "text_encoder", "tokenizer")

    def require_parts(self) -> None:
        """Refuse a pipeline that lacks one.

        Raises:
            ConfigurationError: naming it.
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
        """What the denoiser is told beside caption and sizes, for JSON; losses depend on it."""
        return {}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the text that attention reads."""
        return self.pipeline.tokenizer

    # Text and images

    @abstractmethod
    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids`, `prompt_length` and the like of B captions, on the CPU."""

    @abstractmethod
    def encode_text(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`TEXT_FIELDS` of token ids, where the text encoders are; with a graph where these are trained.

        Args:
            tokens: fields of :meth:`tokens`; others are ignored.
        """

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Scaled latents (the posterior's mode) `(B, C, h, w)` of pixel values `(B, 3, H, W)`."""
        return encode_images(self.vae, pixel_values)

    # The denoising problem

    @abstractmethod
    def training_scheduler(self) -> Any:
        """The noise schedule of training, of the pipeline's own configuration."""

    @property
    def steps(self) -> int:
        """Number of timesteps of the schedule."""
        return int(self.scheduler.config["num_train_timesteps"])

    def noise_level(self, timesteps: Tensor) -> Tensor:
        """`(B,)`: ᾱ of each timestep, or σ = t / steps in flow matching."""
        if self.prediction_type == "flow_prediction":
            return timesteps.float() / self.steps
        return self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]

    def signal_to_noise_ratio(self, timesteps: Tensor) -> Tensor:
        """`(B,)`; ((1 − σ) / σ)² in flow matching."""
        if self.prediction_type == "flow_prediction":
            sigma = self.noise_level(timesteps).clamp(min=1e-6)
            return ((1 - sigma) / sigma).square()
        return signal_to_noise_ratio(self.scheduler.alphas_cumprod, timesteps)

    def noisy_and_target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """What the denoiser is shown and what it should answer, both `(B, C, h, w)`."""
        level = self.noise_level(timesteps)
        return noisy_and_target(latents, noise, level, prediction_type=self.prediction_type)

    def shifted(self, timesteps: Tensor) -> Tensor:
        """Where drawn timesteps lie on the schedule of training, `(B,)` int64.

        A draw t counts places on the evenly spaced schedule from its clean end, so it is number `steps` − 1 − t of the
        flow scheduler's descending timesteps, which a static `shift` s has moved: σ becomes s σ / (1 + (s − 1) σ)
        (Esser et al., "Scaling Rectified Flow Transformers", 2024; diffusers' train_dreambooth_lora_sd3.py draws so).
        A shift that depends on the resolution (`use_dynamic_shifting`) moves nothing there, and nothing here. Results
        are rounded to whole timesteps from 1 to `steps` − 1. Other schedules know no shift.

        Args:
            timesteps: `(B,)` int64, as a sampler drew them.
        """
        if self.prediction_type != "flow_prediction":
            return timesteps
        schedule = self.scheduler.timesteps.to(timesteps.device)
        return schedule[self.steps - 1 - timesteps].round().to(timesteps.dtype).clamp(1, self.steps - 1)

    @abstractmethod
    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], *, batch: Mapping[str, Any]
    ) -> Tensor:
        """The denoiser's answer `(B, C, h, w)`, of exactly one call of it.

        Args:
            noisy: `(B, C, h, w)`.
            timesteps: `(B,)` int64.
            text: `TEXT_FIELDS`.
            batch: for `original_size`, `crop_top_left` and `target_size`, where it has them.
        """

    def size_of(self, name: str, noisy: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """`(B, 2)` rows and columns in pixels: a size that the batch names, else that of the images behind `noisy`."""
        if name in batch:
            size: Tensor = batch[name].to(noisy.device)
            return size
        factor = int(self.pipeline.vae_scale_factor)
        # Filled on the device: nothing waits for a copy.
        sides = [torch.full((len(noisy),), side * factor, device=noisy.device) for side in noisy.shape[-2:]]
        return torch.stack(sides, dim=1)

    def as_output(self, values: Tensor) -> Tensor:
        """`(B, C, h, w)` values of each latent in the form of the denoiser's output, such as a sequence of patches."""
        return values

    # The trained model

    def export(self) -> Any:
        """A pipeline to sample with that shares these modules."""
        return self.pipeline


def count_words(mask: Tensor) -> Tensor:
    """`(B,)` int64 tokens of each caption, of an attention mask `(B, T)`."""
    return mask.sum(dim=1).to(torch.int64)


def words(tokenizer: Any, input_ids: Tensor, mask: Tensor) -> Tensor:
    """`(B, T)` bool: tokens of the caption itself, without the marks of its beginning and end.

    Args:
        tokenizer: that made them.
        input_ids: `(B, T)`.
        mask: `(B, T)`, true for the caption with its marks.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    marks = {getattr(tokenizer, name, None) for name in names} - {None}
    return mask.bool() & ~torch.isin(input_ids, torch.tensor(sorted(marks), dtype=input_ids.dtype))
