"""Stable Diffusion 3 and 3.5: two CLIP text encoders and T5, and a transformer that predicts a velocity.

Attention reads CLIP's tokens, followed by T5's. The states of both CLIP encoders are side by side in the width, padded
with zeros to T5's width. A pipeline without T5 has zeros in its place, as in the stock pipeline. `input_ids` and
`prompt_length` are those of CLIP. `prompt_mask` covers both texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn.functional import pad

from memtrain.functional.tokens import tokenize
from memtrain.models.encoding import clip_states, encode_tokens
from memtrain.training.pipelines.base import TrainablePipeline, count_words, words


class StableDiffusion3(TrainablePipeline):
    """Parts of a StableDiffusion3Pipeline."""

    classes: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    # As in diffusers' train_dreambooth_lora_sd3.py, which also leaves out the image-only attention of SD 3.5 (attn2).
    lora_targets: ClassVar[tuple[str, ...]] = (
        *("attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out"),
        *("attn.to_k", "attn.to_out.0", "attn.to_q", "attn.to_v"),
    )

    @property
    def needed_parts(self) -> tuple[str, ...]:
        """Both CLIP encoders; T5 is needed with its tokenizer or not at all."""
        last = ("tokenizer_3",) if getattr(self.pipeline, "text_encoder_3", None) is not None else ()
        return ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", *last)

    def training_scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Return flow matching with the pipeline's shift."""
        return FlowMatchEulerDiscreteScheduler.from_config(self.pipeline.scheduler.config)

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Make `input_ids`, `input_ids_2`, with T5 `input_ids_3`, `prompt_length` and `prompt_mask` `(B, T)`."""
        pipeline, length = self.pipeline, int(self.pipeline.tokenizer.model_max_length)
        first, mask = tokenize(pipeline.tokenizer, captions, length=length)
        second, _ = tokenize(pipeline.tokenizer_2, captions, length=length)
        found = {"input_ids": first, "input_ids_2": second, "prompt_length": count_words(mask)}
        last = torch.zeros(len(first), self.max_sequence_length, dtype=torch.bool)
        if "text_encoder_3" in self.text_encoders:
            found["input_ids_3"], mask_3 = tokenize(pipeline.tokenizer_3, captions, length=self.max_sequence_length)
            last = words(pipeline.tokenizer_3, found["input_ids_3"], mask_3)
        return {**found, "prompt_mask": torch.cat([words(pipeline.tokenizer, first, mask), last], dim=1)}

    def encode_text(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make `text_embeddings` `(B, T, width)` of CLIP, then T5, and `pooled_embeddings` of both CLIP encoders."""
        first, pooled = clip_states(self.pipeline.text_encoder, tokens["input_ids"])
        second, pooled_2 = clip_states(self.pipeline.text_encoder_2, tokens["input_ids_2"])
        clip = torch.cat([first, second], dim=-1)
        if "text_encoder_3" in self.text_encoders:
            last = encode_tokens(self.pipeline.text_encoder_3, tokens["input_ids_3"])
        else:
            width = int(self.denoiser.config["joint_attention_dim"])
            last = clip.new_zeros(len(clip), self.max_sequence_length, width)
        clip = pad(clip, (0, last.shape[-1] - clip.shape[-1]))
        return {
            "text_embeddings": torch.cat([clip, last], dim=1),
            "pooled_embeddings": torch.cat([pooled, pooled_2], dim=-1),
        }

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], *, batch: Mapping[str, Any]
    ) -> Tensor:
        """Call the transformer once."""
        prediction: Tensor = self.denoiser(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=text["text_embeddings"],
            pooled_projections=text["pooled_embeddings"],
        ).sample
        return prediction
