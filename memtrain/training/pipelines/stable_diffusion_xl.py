"""Stable Diffusion XL: two CLIP text encoders, and a UNet that gets the sizes of the image.

The text is both encoders' states before the last layer, side by side in the width, and the second one's pooled
embedding. The UNet gets the size of the original, the corner of the crop, and the size of the crop (Podell et al.,
"SDXL", 2023, section 2.2). Without these fields in the batch, the image counts as uncropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from memtrain.functional.tokens import tokenize
from memtrain.models.encoding import clip_states
from memtrain.training.pipelines.base import TrainablePipeline, count_words


class StableDiffusionXL(TrainablePipeline):
    """Parts of a StableDiffusionXLPipeline."""

    classes: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)

    @property
    def needed_parts(self) -> tuple[str, ...]:
        """The parts with both text encoders; the refiner has only one."""
        return ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    def training_scheduler(self) -> DDPMScheduler:
        """Return DDPM with the pipeline's noise schedule."""
        return DDPMScheduler.from_config(self.pipeline.scheduler.config)

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Make `input_ids`, `input_ids_2` `(B, T)` and `prompt_length`."""
        first, mask = tokenize(self.pipeline.tokenizer, captions)
        second, _ = tokenize(self.pipeline.tokenizer_2, captions)
        return {"input_ids": first, "input_ids_2": second, "prompt_length": count_words(mask)}

    def encode_text(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make `text_embeddings` `(B, T, width)` of both encoders and `pooled_embeddings` of the second."""
        first, _ = clip_states(self.pipeline.text_encoder, tokens["input_ids"])
        second, pooled = clip_states(self.pipeline.text_encoder_2, tokens["input_ids_2"])
        return {"text_embeddings": torch.cat([first, second], dim=-1), "pooled_embeddings": pooled}

    def time_ids(self, noisy: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Return rows and columns of the original, of the crop's corner, and of the crop, `(B, 6)`."""
        original, target = (self.size_of(name, noisy, batch) for name in ("original_size", "target_size"))
        corner = batch["crop_top_left"].to(noisy.device) if "crop_top_left" in batch else torch.zeros_like(target)
        return torch.cat([original, corner, target], dim=1).float()

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], *, batch: Mapping[str, Any]
    ) -> Tensor:
        """Call the UNet once."""
        added = {"text_embeds": text["pooled_embeddings"], "time_ids": self.time_ids(noisy, batch)}
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        prediction: Tensor = self.denoiser(noisy, timesteps, text["text_embeddings"], added_cond_kwargs=added).sample
        return prediction
