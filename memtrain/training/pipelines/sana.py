"""Sana: Gemma, an autoencoder that compresses 32 times, and a linear-attention transformer that predicts a velocity.

Captions get no instruction in front, as in diffusers' train_dreambooth_lora_sana.py. That script also uses the
flow-matching schedule without a shift, because the pipeline's own scheduler has another name for its shift. The same
holds here. Sana-Sprint is distilled, and cannot be trained here.
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
    # As in diffusers' train_dreambooth_lora_sana.py.
    lora_targets: ClassVar[tuple[str, ...]] = ("to_k", "to_q", "to_v")

    def require_parts(self) -> None:
        """Refuse missing parts and a distilled transformer, and pad on the right, as the stock pipeline does."""
        super().require_parts()
        config = self.denoiser.config
        if config["guidance_embeds"] or config["timestep_scale"] != 1.0:
            raise ConfigurationError(
                "This Sana transformer was distilled (Sana-Sprint): its guidance is an input, and it has its own "
                "timesteps",
                expected="a transformer that was trained by flow matching, without guidance_embeds and timestep_scale",
                remedy="name the Sana model that it was distilled from",
            )
        self.tokenizer.padding_side = "right"

    def training_scheduler(self) -> Any:
        """Return flow matching."""
        return FlowMatchEulerDiscreteScheduler.from_config(self.pipeline.scheduler.config)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], *, batch: Mapping[str, Any]
    ) -> Tensor:
        """Call the transformer once."""
        prediction: Tensor = self.denoiser(
            noisy,
            encoder_hidden_states=text["text_embeddings"],
            timestep=timesteps,
            encoder_attention_mask=text["text_mask"],
        ).sample
        return prediction
