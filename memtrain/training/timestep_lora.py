"""T-LoRA: the noisier the sample, the fewer ranks of its adapter act.

Source: Soboleva et al., "T-LoRA: Single Image Diffusion Model Customization Without Overfitting", AAAI 2026 (arXiv
2507.05964), with the authors' code. At timestep t of T, the first ⌊((T − t) / T)^exponent · (rank − minimum)⌋ + minimum
ranks act. Noisy timesteps, at which a picture is overfitted soonest, thus change least.

The authors use one rank for a batch, that of its first sample. Here each sample has the rank of its own timestep. Their
orthogonal initialization (of "Ortho-LoRA") is not included. With ordinary adapters the method is their "Vanilla
T-LoRA".

Cost: a comparison and a product per adapted layer. Suggested (authors, SDXL): rank 64, minimum 32, exponent 1.
Sampling must apply the same rule, as the authors' pipeline does, and as `memtrain` with `--run` or `--lora` does.
Cannot: be merged into weights. Stock diffusers, and the exported pipeline folder, apply all ranks at every timestep.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from memtrain.errors import ConfigurationError
from memtrain.files.shown import shown
from memtrain.files.text import json_of
from memtrain.models.adapters import adapted_layers
from memtrain.models.backbones.base import Backbone, find_backbone

STEPS = 1000
"""T: backbones give timesteps from 0 to 1,000, whatever the denoiser's own scale."""
METADATA = "memtrain_timestep_rank"
"""The key of a weight file's metadata, which diffusers ignores."""


@dataclass(frozen=True, kw_only=True)
class TimestepRank:
    """The number of ranks that act at a timestep.

    Args:
        minimum: the number of ranks at the noisiest timestep.
        exponent: the exponent of the decrease; 1 falls linearly, above 1 the rank falls sooner.
    """

    minimum: int = 1
    exponent: float = 1.0

    def __post_init__(self) -> None:
        if self.minimum < 1 or self.exponent <= 0:
            raise ConfigurationError(
                f"timestep_rank: minimum={self.minimum}, exponent={self.exponent}",
                expected="a minimum of at least 1 and an exponent above 0",
                remedy="correct model.init_args.lora.timestep_rank",
            )

    def ranks(self, timesteps: Tensor, rank: int) -> Tensor:
        """Return how many ranks act, int64 in the shape of `timesteps` (from 0 to 1,000)."""
        left = ((STEPS - timesteps.float()) / STEPS).clamp(0, 1) ** self.exponent
        # Rounding must not push a whole number below itself.
        return (left * (rank - self.minimum) + 1e-4).floor().long() + self.minimum

    def attach(self, denoiser: nn.Module) -> TimestepMask:
        """Let adapters of a denoiser, without wrappers, act by this rule from now on."""
        return TimestepMask(denoiser, self)

    def metadata(self) -> dict[str, str]:
        """Return the metadata that a weight file holds about the rule."""
        return {METADATA: json.dumps(asdict(self))}

    @staticmethod
    def of(metadata: dict[str, str]) -> TimestepRank | None:
        """Read the rule of a weight file; None if it has none.

        Raises:
            MemtrainError: if the metadata hold something else.
        """
        if METADATA not in metadata:
            return None
        rule = json_of(metadata[METADATA], f"{METADATA!r} of a weight file's metadata")
        numbers = isinstance(rule, dict) and all(type(value) in (int, float) for value in rule.values())
        if not numbers or not rule.keys() <= {"minimum", "exponent"}:
            raise ConfigurationError(
                f"{METADATA!r} of a weight file's metadata is {shown(rule)}",
                expected="minimum and exponent, two numbers",
                remedy="download or export the file again",
            )
        return TimestepRank(**rule)


class TimestepMask:
    """Hooks that read the timesteps of a denoiser's call, and mask the output of its adapters' first factor.

    Args:
        denoiser: a denoiser with adapters.
        rule: the rule for the number of ranks.

    Raises:
        ConfigurationError: if no backbone finds the denoiser's timesteps, or if there are no adapters.
    """

    def __init__(self, denoiser: nn.Module, rule: TimestepRank) -> None:
        backbone, layers = find_backbone(denoiser), adapted_layers(denoiser)
        if backbone is None or not layers:
            raise ConfigurationError(
                f"The timesteps of {type(denoiser).__name__} with {len(layers)} adapted layers cannot choose ranks",
                expected="a denoiser of a family in memtrain.models.backbones, with adapters",
                remedy="remove timestep_rank from model.init_args.lora",
            )
        self.rule = rule
        self._backbone: Backbone = backbone
        self._timesteps: Tensor | None = None
        self._outer: Tensor | None = None
        # Bound methods, so that a copy of the module has hooks of its own.
        denoiser.register_forward_pre_hook(self._enter, with_kwargs=True)
        denoiser.register_forward_hook(self._leave)
        for layer in layers.values():
            self._hook(layer)

    def _hook(self, layer: LoraLayer) -> None:
        for factor in layer.lora_A.values():
            factor.register_forward_hook(self._mask)

    def _enter(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latents, timesteps, _ = self._backbone.inputs(args, kwargs)
        self._outer = self._timesteps
        self._timesteps = torch.as_tensor(timesteps, device=latents.device).reshape(-1)

    def _leave(self, denoiser: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        # Gradient checkpointing runs layers again after the forward, and forwards without gradients may come between.
        again: Any = getattr(denoiser, "is_gradient_checkpointing", False)
        if not (again and torch.is_grad_enabled()):
            self._timesteps = self._outer

    def _mask(self, factor: nn.Module, args: tuple[Any, ...], values: Tensor) -> Tensor:
        """Mask `(B, ..., r)` of a linear layer, or `(B, r, h, w)` of a convolution."""
        timesteps = self._timesteps
        if timesteps is None:
            raise ConfigurationError(
                "An adapter of T-LoRA ran outside its denoiser, so there is no timestep that decides its ranks",
                expected="whole forward passes of the denoiser; localize and calibrate run single layers of it",
                remedy="use the pipeline folder of the run with --model; there, all ranks act at every timestep",
            )
        axis = 1 if isinstance(factor, nn.Conv2d) else values.dim() - 1
        rank = values.shape[axis]
        kept = torch.arange(rank, device=values.device) < self.rule.ranks(timesteps, rank)[:, None]
        shape = [1] * values.dim()
        shape[0], shape[axis] = len(timesteps), rank
        return values * kept.view(shape).to(values)
