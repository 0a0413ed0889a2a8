"""What a backbone file has to know about its denoiser family."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from memtrain.errors import ProbeError


class Backbone(ABC):
    """Structure of one denoiser family. Instances hold no state."""

    @staticmethod
    @abstractmethod
    def accepts(module: nn.Module) -> bool:
        """Whether `module` is a denoiser of this family."""

    @abstractmethod
    def sites(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """Attention modules that read the text, by module path, in the order of the forward pass."""

    @abstractmethod
    def project(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Queries `(B, H, N, D)` and text keys `(B, H, T, D)`, bit for bit what the attention computes.

        Args:
            attention: one of the sites.
            args: positional arguments of its forward call.
            kwargs: keyword arguments of its forward call.
        """

    @abstractmethod
    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any, Tensor]:
        """Noisy latents `(B, C, h, w)`, timestep(s) and text embeddings `(B, T, width)` of a forward call."""

    @abstractmethod
    def output(self, result: Any) -> Tensor:
        """The prediction `(B, C, h, w)` in what the denoiser's forward call returned."""


def find_backbone(module: nn.Module) -> Backbone | None:
    """The backbone that accepts `module`, or None; families are found by walking this package."""
    package = importlib.import_module(__package__ or "memtrain.models.backbones")
    for entry in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{entry.name}")
    for family in sorted(Backbone.__subclasses__(), key=lambda family: family.__name__):
        if family.accepts(module):
            return family()
    return None


def find_denoiser(root: nn.Module, path: str | None = None) -> tuple[str, nn.Module, Backbone]:
    """The denoiser inside a larger module.

    Args:
        root: for instance a LightningModule.
        path: module path of the denoiser; by default the only submodule that a backbone accepts.

    Returns:
        Its path, the module and its backbone.

    Raises:
        ProbeError: if there is none, more than one, or the named one belongs to no known family.
    """
    candidates = [(path, root.get_submodule(path))] if path else list(root.named_modules())
    known = [(name, module, backbone) for name, module in candidates if (backbone := find_backbone(module))]
    if len(known) != 1:
        names = [name for name, _, _ in known]
        raise ProbeError(
            f"{len(known)} denoisers found in {type(root).__name__}{': ' + ', '.join(names) if names else ''}",
            expected="exactly one module of a known family (diffusers.UNet2DConditionModel)",
            remedy="name it with `denoiser`, the module path inside the LightningModule",
        )
    return known[0]
