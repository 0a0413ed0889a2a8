"""LoRA: train low-rank adapters of a frozen model.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022, and for DoRA Liu et al., "DoRA:
Weight-Decomposed Low-Rank Adaptation", 2024. The layers are those of peft. An adapter adds alpha / rank · B A x to its
layer's output for x. It changes nothing at first, because B is zero. It is in float32, whatever the type of the frozen
weights.

Cost: a step of about the time of full fine-tuning, with a small part of its optimizer's memory. Suggested: rank 4 to 32
with alpha equal to it, a learning rate of 1e-4 (diffusers' scripts). DoRA takes longer, and tolerates lower ranks.
Cannot: adapt normalization layers or embeddings.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from memtrain.errors import ConfigurationError
from memtrain.models.adapters import adapted_layers, adapter_parameters
from memtrain.training.pipelines.base import TrainablePipeline
from memtrain.training.timestep_lora import TimestepRank

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Layers of CLIP's text encoders that get adapters, as in diffusers' scripts."""
ADAPTABLE = (nn.Linear, nn.Conv2d)
"""The kinds of layers that can have an adapter."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Options of the adapters.

    Args:
        rank: the rank of each adapter.
        alpha: the scale; the adapter's output is multiplied by alpha / rank. By default it equals the rank.
        targets: the ends of the names of the denoiser's layers that get an adapter; by default those of the family.
        dropout: the dropout of the adapter's input in training.
        dora: whether to decompose weights into magnitude and direction (DoRA).
        text_encoder: whether to add adapters to the CLIP text encoders too.
        init: the initialization of the first factor: `gaussian` (diffusers' scripts) or `kaiming` (kohya's). The second
            factor is zero.
        timestep_rank: the rule of T-LoRA, by which the timestep decides how many ranks act.

    Raises:
        ConfigurationError: if a value is out of range.
    """

    rank: int = 16
    alpha: float | None = None
    targets: list[str] | None = None
    dropout: float = 0.0
    dora: bool = False
    text_encoder: bool = False
    init: Literal["gaussian", "kaiming"] = "gaussian"
    timestep_rank: TimestepRank | None = None

    def __post_init__(self) -> None:
        rule = self.timestep_rank
        wrong = {
            f"rank={self.rank}": ("a rank of at least 1", self.rank < 1),
            f"alpha={self.alpha}": ("a scale above 0", self.alpha is not None and self.alpha <= 0),
            f"dropout={self.dropout}": ("a share of at least 0 and below 1", not 0 <= self.dropout < 1),
            f"targets={self.targets}": ("names of layers, or none for the family's", self.targets == []),
            "timestep_rank with dora": ("one of both: DoRA's norms use all ranks", bool(rule and self.dora)),
            f"timestep_rank.minimum={rule and rule.minimum} of rank={self.rank}": (
                "a minimum of at most the rank",
                bool(rule and rule.minimum > self.rank),
            ),
        }
        for found, (expected, is_wrong) in wrong.items():
            if is_wrong:
                raise ConfigurationError(f"lora: {found}", expected=expected, remedy="correct model.init_args.lora")

    @property
    def scale(self) -> float:
        """The value of alpha, given or default."""
        return float(self.rank if self.alpha is None else self.alpha)

    def check(self, *, train_text_encoder: bool) -> None:
        """Refuse text encoders whose own weights are trained.

        Raises:
            ConfigurationError: if `train_text_encoder` is true.
        """
        if train_text_encoder:
            raise ConfigurationError(
                "lora with train_text_encoder: a file of adapters does not hold the weights of text encoders",
                expected="`lora: {text_encoder: true}`, which adapts them",
                remedy="set lora.text_encoder to true and train_text_encoder to false",
            )

    def inject(self, parts: TrainablePipeline) -> None:
        """Freeze the denoiser (and the text encoders, if they get adapters), and add adapters.

        Raises:
            ConfigurationError: if a target matches no adaptable layer, or if no text encoder can be adapted.
        """
        encoders = self._text_encoders(parts) if self.text_encoder else {}
        self._add(parts.denoiser, self.targets or parts.lora_targets)
        for encoder in encoders.values():
            self._add(encoder, TEXT_TARGETS)
            encoder.train()
        if self.timestep_rank is not None:
            self.timestep_rank.attach(parts.denoiser)

    @contextmanager
    def dropout_draws(self, generator: torch.Generator) -> Iterator[None]:
        """Within the context, dropout is a function of a generator's seed, so that a resumed run draws the same values.

        Args:
            generator: a generator on the device of the adapters.
        """
        if not self.dropout:
            yield
            return
        with torch.random.fork_rng([generator.device] if generator.device.type == "cuda" else []):
            torch.manual_seed(generator.initial_seed())
            yield

    def _text_encoders(self, parts: TrainablePipeline) -> dict[str, Any]:
        """Return the text encoders whose adapters diffusers stores."""
        stored = getattr(type(parts.pipeline), "save_lora_weights", None)
        known = inspect.signature(stored).parameters if stored is not None else ()
        found = {name: one for name, one in parts.text_encoders.items() if f"{name}_lora_layers" in known}
        if not found:
            raise ConfigurationError(
                f"lora: diffusers stores no adapters of the text encoders of a {type(parts.pipeline).__name__}",
                expected="text_encoder: false",
                remedy="remove `text_encoder` from model.init_args.lora",
            )
        return found

    def _add(self, module: Any, targets: Iterable[str]) -> None:
        module.requires_grad_(False)
        _check_targets(module, list(targets))
        options = LoraConfig(
            r=self.rank,
            lora_alpha=self.scale,  # type: ignore[arg-type]
            target_modules=list(targets),
            lora_dropout=self.dropout,
            use_dora=self.dora,
            init_lora_weights="gaussian" if self.init == "gaussian" else True,
        )
        if hasattr(module, "add_adapter"):
            module.add_adapter(options)
        else:  # PixArt's
            inject_adapter_in_model(options, module)
        for layer in adapted_layers(module).values():
            for value in adapter_parameters(layer):
                value.data = value.data.float()


def _check_targets(module: nn.Module, targets: list[str]) -> None:
    """Refuse targets without a layer. peft only notices when no target has a layer."""
    layers = dict(module.named_modules())
    for target in targets:
        matched = [name for name in layers if name == target or name.endswith(f".{target}")]
        unfit = [name for name in matched if not isinstance(layers[name], ADAPTABLE)]
        if matched and not unfit:
            continue
        adaptable = sorted({_end(name) for name, layer in layers.items() if isinstance(layer, ADAPTABLE)})
        close = fnmatch.filter(adaptable, f"*{target.rpartition('.')[2]}*")
        raise ConfigurationError(
            f"lora: the target {target!r} "
            + (f"matches {type(layers[unfit[0]]).__name__} {unfit[0]!r}" if unfit else "matches no layer")
            + f" of the {type(module).__name__}",
            expected=f"ends of the names of linear or convolution layers, such as {', '.join(close or adaptable[:12])}",
            remedy="correct model.init_args.lora.targets",
        )


def _end(name: str) -> str:
    """Return the common end of the names of layers of one kind: `to_q`, or `to_out.0` for a number at the end."""
    words = name.split(".")
    return ".".join(words[-2:] if words[-1].isdigit() else words[-1:])
