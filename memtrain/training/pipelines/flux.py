"""FLUX.1 (dev, schnell): T5 for the attention, CLIP for one vector, and a transformer over patches of the latents.

`input_ids` are T5's, which attention reads. `input_ids_2` are CLIP's, and only their pooled embedding is used. The
transformer gets latents in patches of 2 by 2, the place of each patch, and timesteps divided by 1,000. FLUX.1-dev also
gets the strength of its guidance: `guidance`, by default 1, as in the commands of diffusers' README_flux.md (their
script's own default is 3.5, the strength for sampling). It shifts its schedule by resolution in sampling, not in
training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.functional.tokens import tokenize
from memtrain.models.encoding import encode_tokens
from memtrain.models.stock_pipeline import from_patches, to_patches
from memtrain.training.pipelines.base import TrainablePipeline, count_words, words


class Flux(TrainablePipeline):
    """Parts of a FluxPipeline."""

    classes: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    # As in diffusers' train_dreambooth_lora_flux.py.
    lora_targets: ClassVar[tuple[str, ...]] = (
        *("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0"),
        *("attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    @property
    def needed_parts(self) -> tuple[str, ...]:
        """The parts with CLIP and T5."""
        return ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of T5."""
        return self.pipeline.tokenizer_2

    @property
    def conditioning(self) -> dict[str, float]:
        """The strength of the guidance, for FLUX.1-dev."""
        return {"guidance": self.guidance} if self.denoiser.config["guidance_embeds"] else {}

    def training_scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Return flow matching with the pipeline's static shift, if it has one."""
        return FlowMatchEulerDiscreteScheduler.from_config(self.pipeline.scheduler.config)

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Make `input_ids` of T5, `input_ids_2` of CLIP, `prompt_length` and `prompt_mask` `(B, T)`."""
        ids, mask = tokenize(self.tokenizer, captions, length=self.max_sequence_length)
        pooled, _ = tokenize(self.pipeline.tokenizer, captions)
        return {
            "input_ids": ids,
            "input_ids_2": pooled,
            "prompt_length": count_words(mask),
            "prompt_mask": words(self.tokenizer, ids, mask),
        }

    def encode_text(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make `text_embeddings` `(B, T, width)` of T5 and `pooled_embeddings` of CLIP."""
        return {
            "text_embeddings": encode_tokens(self.pipeline.text_encoder_2, tokens["input_ids"]),
            "pooled_embeddings": self.pipeline.text_encoder(tokens["input_ids_2"]).pooler_output,
        }

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], *, batch: Mapping[str, Any]
    ) -> Tensor:
        """Call the transformer once."""
        rows, columns = noisy.shape[-2] // 2, noisy.shape[-1] // 2
        if noisy.shape[-2:] != (2 * rows, 2 * columns):
            raise ConfigurationError(
                f"FLUX reads latents in patches of 2 by 2, but these are {noisy.shape[-2]} by {noisy.shape[-1]}",
                expected=f"images whose sides are multiples of {2 * int(self.pipeline.vae_scale_factor)} pixels",
                remedy="set data.init_args.resolution to such a multiple",
            )
        embeddings, device = text["text_embeddings"], noisy.device
        places = torch.zeros(rows, columns, 3, device=device)
        places[..., 1], places[..., 2] = (
            torch.arange(rows, device=device)[:, None],
            torch.arange(columns, device=device),
        )
        patches: Tensor = self.denoiser(
            hidden_states=to_patches(noisy),
            timestep=timesteps / 1000,
            guidance=torch.full((len(noisy),), self.guidance, device=device) if self.conditioning else None,
            pooled_projections=text["pooled_embeddings"],
            encoder_hidden_states=embeddings,
            txt_ids=torch.zeros(embeddings.shape[1], 3, device=device),
            img_ids=places.reshape(-1, 3),
        ).sample
        return from_patches(patches, rows, columns)

    def as_output(self, values: Tensor) -> Tensor:
        """Return values in patches `(B, N, 4 C)`, the form of the transformer's answer."""
        return to_patches(values)
