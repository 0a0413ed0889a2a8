"""Hooks that edit the values which attention sites make of the text.

The hook sits on the value projection that a site has when it runs. An adapter that is added later wraps the layer, and
its part must be edited too. A second pair of hooks on the denoiser tells training forwards from others.

Forwards with gradients are training, all others are not. Gradient checkpointing runs the blocks again during the
backward pass, outside any forward of the denoiser. This counts as training too, so that both passes meet the same edit.
Compiled denoisers: attach before the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memtrain.errors import ProbeError
from memtrain.models.backbones.base import Backbone, unwrap

Edit = Callable[[str, Tensor], Tensor]
"""The function from a site's name and its values `(B, T, C)` to the new values."""


class ValueHooks:
    """Edit the values of some sites.

    Args:
        denoiser: the denoiser, wrapped or not.
        sites: the attention modules by the backbone's names.
        backbone: the backbone of the denoiser's family.
        edit: the function that edits each site's values.

    Attributes:
        training: whether the values belong to a training step; read it in `edit`.
        ran: whether a forward has ended since the hooks were attached.

    Raises:
        ProbeError: if a site has no value projection for the text alone.
    """

    def __init__(self, denoiser: nn.Module, sites: Mapping[str, nn.Module], *, backbone: Backbone, edit: Edit) -> None:
        self.denoiser, self.sites, self.edit = unwrap(denoiser), dict(sites), edit
        self.projections = {site: backbone.value_projection(attention) for site, attention in self.sites.items()}
        self.training, self.ran = True, False
        self._reached: set[str] = set()
        self._handles: list[RemovableHandle] = []
        self._hooked: dict[str, tuple[nn.Module, RemovableHandle]] = {}

    def attach(self) -> ValueHooks:
        """Register the hooks."""
        self._handles = [
            self.denoiser.register_forward_pre_hook(self._before_denoiser),
            self.denoiser.register_forward_hook(self._after_denoiser),
        ]
        for site, attention in self.sites.items():
            self._hook(site, self.layer(site))
            self._handles.append(attention.register_forward_pre_hook(self._hook_again(site)))
        return self

    def detach(self) -> None:
        """Remove the hooks; nothing happens if they are not attached."""
        for handle in [*self._handles, *(handle for _, handle in self._hooked.values())]:
            handle.remove()
        self._handles, self._hooked = [], {}

    def layer(self, site: str) -> nn.Module:
        """Return the present value projection of a site."""
        layer: nn.Module = getattr(self.sites[site], self.projections[site])
        return layer

    def require_reached(self) -> None:
        """Check the last forward.

        Raises:
            ProbeError: if it did not pass through every site, or if there was no forward.
        """
        missed = [site for site in self.sites if site not in self._reached]
        if missed:
            raise ProbeError(
                f"{len(missed)} of {len(self.sites)} masked sites were not reached, first {missed[0]!r}",
                expected="every masked site in every forward pass",
                remedy="attach the mask before the first call of a compiled denoiser, or call torch._dynamo.reset()",
            )

    def _hook(self, site: str, layer: nn.Module) -> None:
        def edit(module: nn.Module, args: tuple[Any, ...], values: Tensor) -> Tensor:
            self._reached.add(site)
            return self.edit(site, values)

        self._hooked[site] = (layer, layer.register_forward_hook(edit))

    def _hook_again(self, site: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(attention: nn.Module, args: tuple[Any, ...]) -> None:
            hooked, handle = self._hooked[site]
            if (layer := self.layer(site)) is not hooked:
                handle.remove()
                self._hook(site, layer)

        return before

    def _before_denoiser(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._reached.clear()
        self.training = torch.is_grad_enabled()

    def _after_denoiser(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        self.training, self.ran = True, True
