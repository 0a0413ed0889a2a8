"""Stable Diffusion XL: two CLIP text encoders, and a UNet that is told the sizes of the image.

Text: both encoders' states before the last layer, side by side in the width, and the second one's pooled embedding. The
UNet is told the size of the original, where the crop began, and the size of the crop (Podell et al., "SDXL", 2023,
section 2.2); what a batch does not say is taken to be the image as it is, uncropped.
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
        """Both text encoders; the refiner has but one."""
        return ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    def training_scheduler(self) -> DDPMScheduler:
        """DDPM with the pipeline's noise schedule."""
        return DDPMScheduler.from_config(self.pipeline.scheduler.config)

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids`, `input_ids_2` `(B, T)` and `prompt_length`."""
        first, mask = tokenize(self.pipeline.tokenizer, captions)
        second, _ = tokenize(self.pipeline.tokenizer_2, captions)
        return {"input_ids": first, "input_ids_2": second, "prompt_length": count_words(mask)}

    def encode_text(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`text_embeddings` `(B, T, width)` of both encoders and `pooled_embeddings` of the second."""
        first, _ = clip_states(self.pipeline.text_encoder, tokens["input_ids"])
        second, pooled = clip_states(self.pipeline.text_encoder_2, tokens["input_ids_2"])
        return {"text_embeddings": torch.cat([first, second], dim=-1), "pooled_embeddings": pooled}

    def time_ids(self, noisy: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """`(B, 6)`: rows and columns of the original, of the crop's corner, and of the crop."""
        original, target = (self.size_of(name, noisy, batch) for name in ("original_size", "target_size"))
        corner = batch["crop_top_left"].to(noisy.device) if "crop_top_left" in batch else torch.zeros_like(target)
        return torch.cat([original, corner, target], dim=1).float()

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], *, batch: Mapping[str, Any]
    ) -> Tensor:
        """One call of the UNet."""
        added = {"text_embeds": text["pooled_embeddings"], "time_ids": self.time_ids(noisy, batch)}
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        prediction: Tensor = self.denoiser(noisy, timesteps, text["text_embeddings"], added_cond_kwargs=added).sample
        return prediction
