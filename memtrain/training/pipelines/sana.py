"""Sana: Gemma, an autoencoder that compresses 32 times, and a linear-attention transformer that predicts a velocity.

No instruction is put before captions, as in diffusers' train_dreambooth_lora_sana.py. That script also takes the
flow-matching schedule unshifted, because the pipeline's own scheduler calls its shift by another name; so it is here.
Sana-Sprint is distilled, and not trained here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.training.pipelines.masked_text import MaskedTextPipeline


class Sana(MaskedTextPipeline):
    """Parts of a SanaPipeline."""

    classes: ClassVar[tuple[str, ...]] = ("SanaPipeline",)
    # As diffusers' train_dreambooth_lora_sana.py.
    lora_targets: ClassVar[tuple[str, ...]] = ("to_k", "to_q", "to_v")

    def require_parts(self) -> None:
        """Refuse what is missing, and a distilled transformer; pad on the right, as the stock pipeline does."""
        super().require_parts()
        config = self.denoiser.config
        if config["guidance_embeds"] or config["timestep_scale"] != 1.0:
            raise ConfigurationError(
                "This Sana transformer was distilled (Sana-Sprint): it is told its guidance, and timesteps of its own",
                expected="a transformer that was trained by flow matching, without guidance_embeds and timestep_scale",
                remedy="name the Sana model that it was distilled from",
            )
        self.tokenizer.padding_side = "right"

    def training_scheduler(self) -> Any:
        """Flow matching."""
        return FlowMatchEulerDiscreteScheduler.from_config(self.pipeline.scheduler.config)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], *, batch: Mapping[str, Any]
    ) -> Tensor:
        """One call of the transformer."""
        prediction: Tensor = self.denoiser(
            noisy,
            encoder_hidden_states=text["text_embeddings"],
            timestep=timesteps,
            encoder_attention_mask=text["text_mask"],
        ).sample
        return prediction
