"""LoRA: train low-rank adapters of a frozen model.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, inject_adapter_in_model

from memtrain.training.pipelines.base import TrainablePipeline


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Options of the adapters.

    Args:
        rank: of each adapter.
        alpha: scale; the adapter's output is multiplied by alpha / rank. Default: the rank.
        targets: names of the layers that get one, as peft names targets; default those of the family.
        dropout: of the adapter's input.
        dora: decompose weights into magnitude and direction (Liu et al., "DoRA", 2024).
    """

    rank: int = 16
    alpha: int | None = None
    targets: list[str] | None = None
    dropout: float = 0.0
    dora: bool = False

    def inject(self, parts: TrainablePipeline) -> None:
        """Freeze the denoiser and add adapters to it."""
        denoiser: Any = parts.denoiser
        denoiser.requires_grad_(False)
        options = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank if self.alpha is None else self.alpha,
            target_modules=list(self.targets or parts.lora_targets),
            lora_dropout=self.dropout,
            use_dora=self.dora,
            init_lora_weights="gaussian",
        )
        if hasattr(denoiser, "add_adapter"):
            denoiser.add_adapter(options)
        else:  # PixArt's
            inject_adapter_in_model(options, denoiser)
