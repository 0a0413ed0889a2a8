"""PixArt-α and PixArt-Σ: T5, and a transformer that masks padding and may predict a variance, which is not trained.

PixArt-α at 1024 pixels gets the size and the aspect ratio of the image. Stock pipelines cannot load LoRA files of this
family, so it is mostly trained whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import DDPMScheduler
from torch import Tensor

from memtrain.models.stock_pipeline import as_maps
from memtrain.training.pipelines.masked_text import MaskedTextPipeline


class PixArt(MaskedTextPipeline):
    """Parts of a PixArtAlphaPipeline or PixArtSigmaPipeline."""

    classes: ClassVar[tuple[str, ...]] = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")

    def training_scheduler(self) -> Any:
        """Return DDPM with the pipeline's noise schedule."""
        return DDPMScheduler.from_config(self.pipeline.scheduler.config)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], *, batch: Mapping[str, Any]
    ) -> Tensor:
        """Call the transformer once, and drop its variance."""
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.denoiser.use_additional_conditions:
            size = self.size_of("target_size", noisy, batch).to(noisy.dtype)
            added = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
        output: Tensor = self.denoiser(
            noisy,
            encoder_hidden_states=text["text_embeddings"],
            timestep=timesteps,
            encoder_attention_mask=text["text_mask"],
            added_cond_kwargs=added,
        ).sample
        return as_maps(output, noisy.shape[1])
