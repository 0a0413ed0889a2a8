"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet that predicts noise or velocity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from memtrain.functional.tokens import tokenize
from memtrain.models.encoding import encode_tokens
from memtrain.models.pipeline import ddim
from memtrain.training.pipelines.base import TrainablePipeline, count_words


class StableDiffusion(TrainablePipeline):
    """Parts of a StableDiffusionPipeline."""

    classes: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)

    def training_scheduler(self) -> DDPMScheduler:
        """Return DDPM with the pipeline's noise schedule."""
        return DDPMScheduler.from_config(self.pipeline.scheduler.config)

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Make `input_ids` `(B, T)` and `prompt_length`."""
        input_ids, mask = tokenize(self.tokenizer, captions)
        return {"input_ids": input_ids, "prompt_length": count_words(mask)}

    def encode_text(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make `text_embeddings` `(B, T, width)`."""
        return {"text_embeddings": encode_tokens(self.pipeline.text_encoder, tokens["input_ids"])}

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], *, batch: Mapping[str, Any]
    ) -> Tensor:
        """Call the UNet once."""
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        prediction: Tensor = self.denoiser(noisy, timesteps, text["text_embeddings"]).sample
        return prediction

    def export(self) -> Any:
        """Return the pipeline with DDIM sampling, as in published work on memorization."""
        self.pipeline.scheduler = ddim(self.scheduler.config)
        return self.pipeline
