"""A neuron mask: value channels of attention sites, switched off or scaled.

Source: NeMo (Hintersdorf et al., "Finding NeMo", NeurIPS 2024): a few output channels of the value projections carry a
memorized image; with them at zero it does not appear. Masking suppresses what a prompt triggers, it does not erase what
the weights hold ("Finding DoRI", arXiv 2507.16880).

The mask acts by a forward hook on the value projection that the site has when it runs, so LoRA layers that are injected
later are masked too. `bake` writes it into the weights instead; both give the same output.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memtrain.errors import ProbeError
from memtrain.models.backbones.base import find_backbone, unwrap

FORMAT = "memtrain.neuron_mask.1"


class NeuronMask:
    """Value channels to scale.

    Use as `with mask.on(denoiser):`, or :meth:`attach` and :meth:`detach`.

    Args:
        channels: per site, the output channels of its value projection.
        factor: what they are multiplied by; 0 switches them off.

    Raises:
        ProbeError: if there is no channel.
    """

    def __init__(self, channels: Mapping[str, Sequence[int]], *, factor: float = 0.0) -> None:
        self.channels = {site: sorted(set(map(int, chosen))) for site, chosen in channels.items() if len(chosen)}
        self.factor = factor
        if not self.channels:
            raise ProbeError(
                "A neuron mask without a channel", expected="at least one channel", remedy="leave the mask out"
            )
        self.rows: Tensor | None = None
        """`(B,)` bool, which samples of the coming forwards are masked; None for all."""
        self._handles: list[RemovableHandle] = []
        self._hooked: dict[str, tuple[nn.Module, RemovableHandle]] = {}
        self._hit: set[str] = set()
        self._ran = False

    def __len__(self) -> int:
        return sum(map(len, self.channels.values()))

    def __or__(self, other: NeuronMask) -> NeuronMask:
        """Both masks' channels, with this one's factor."""
        sites = [*self.channels, *(site for site in other.channels if site not in self.channels)]
        both = {site: [*self.channels.get(site, []), *other.channels.get(site, [])] for site in sites}
        return NeuronMask(both, factor=self.factor)

    def on(self, denoiser: nn.Module) -> NeuronMask:
        """Attach, for use in a `with` statement."""
        return self.attach(denoiser)

    def __enter__(self) -> NeuronMask:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        ran, missed = self._ran, [site for site in self.channels if site not in self._hit]
        self.detach()
        if kind is None and ran and missed:
            raise ProbeError(
                f"{len(missed)} of {len(self.channels)} masked sites were not reached, first {missed[0]!r}",
                expected="every masked site in every forward pass",
                remedy="attach the mask before the first call of a compiled denoiser, or call torch._dynamo.reset()",
            )

    def attach(self, denoiser: nn.Module) -> NeuronMask:
        """Put the mask on a denoiser (wrapped or not).

        Raises:
            ProbeError: if it is attached already, or a site or channel does not exist.
        """
        if self._handles:
            raise ProbeError("The mask is attached already", remedy="detach() it first")
        found = [
            (site, attention, projection, self._scale(site, getattr(attention, projection), denoiser))
            for site, (attention, projection) in self._sites(denoiser).items()
        ]
        self._hit, self._ran = set(), False
        self._handles = [unwrap(denoiser).register_forward_hook(self._after_denoiser)]
        for site, attention, projection, scale in found:
            self._hook(site, attention, projection, scale)
            again = self._hook_again(site, projection, scale)
            self._handles.append(attention.register_forward_pre_hook(again))
        return self

    def detach(self) -> None:
        """Remove the mask; harmless when not attached."""
        for handle in [*self._handles, *(handle for _, handle in self._hooked.values())]:
            handle.remove()
        self._handles, self._hooked, self.rows = [], {}, None

    def bake(self, denoiser: nn.Module) -> None:
        """Write the mask into the weights: rows of the value projections times `factor`. There is no way back.

        Raises:
            ProbeError: if a site or channel does not exist, or a projection is no plain linear layer.
        """
        for site, (attention, projection) in self._sites(denoiser).items():
            layer = getattr(attention, projection)
            if type(layer) is not nn.Linear:
                raise ProbeError(
                    f"The value projection of {site!r} is a {type(layer).__name__}",
                    expected="torch.nn.Linear",
                    remedy="merge adapters into the weights first",
                )
            scale = self._scale(site, layer, denoiser)
            with torch.no_grad():
                layer.weight.mul_(scale.to(layer.weight)[:, None])
                if layer.bias is not None:
                    layer.bias.mul_(scale.to(layer.bias))

    def save(self, path: Path) -> None:
        """Write a safetensors file: one int64 tensor per site, factor and format in its metadata."""
        tensors = {site: torch.tensor(chosen) for site, chosen in self.channels.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={"format": FORMAT, "factor": json.dumps(self.factor)})

    @staticmethod
    def load(path: Path) -> NeuronMask:
        """Read a file that :meth:`save` wrote.

        Raises:
            ProbeError: if it is something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise SafetensorError(f"its format is {metadata.get('format')!r}")
                channels = {site: file.get_tensor(site).tolist() for site in file.keys()}  # noqa: SIM118
                return NeuronMask(channels, factor=float(json.loads(metadata["factor"])))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ProbeError(
                f"{path} is no neuron mask: {error}",
                expected=f"a safetensors file of format {FORMAT}",
                remedy="check the path",
            ) from error

    def _sites(self, denoiser: nn.Module) -> dict[str, tuple[nn.Module, str]]:
        backbone = find_backbone(denoiser)
        known = {} if backbone is None else backbone.sites(unwrap(denoiser))
        unknown = [site for site in self.channels if site not in known]
        if backbone is None or unknown:
            raise ProbeError(
                f"{len(unknown)} of {len(self.channels)} masked sites are not in {type(unwrap(denoiser)).__name__}",
                expected=f"sites such as {next(iter(known), 'none: no backbone knows this denoiser')!r}",
                remedy="use a mask that was made for this model",
            )
        return {site: (known[site], backbone.value_projection(known[site])) for site in self.channels}

    def _scale(self, site: str, layer: nn.Module, denoiser: nn.Module) -> Tensor:
        width: Any = getattr(layer, "out_features", 0)
        if self.channels[site][0] < 0 or self.channels[site][-1] >= width:
            raise ProbeError(
                f"The mask names channels {self.channels[site][0]} to {self.channels[site][-1]} of {site!r}, which has "
                f"{width}",
                expected="channels of the value projection",
                remedy="use a mask that was made for this model",
            )
        scale = torch.ones(width)
        scale[self.channels[site]] = self.factor
        return scale.to(next(denoiser.parameters()).device)

    def _hook(self, site: str, attention: nn.Module, projection: str, scale: Tensor) -> None:
        def mask(module: nn.Module, args: tuple[Any, ...], values: Tensor) -> Tensor:
            self._hit.add(site)
            masked = values * scale.to(values)
            return masked if self.rows is None else torch.where(self.rows.view(-1, 1, 1), masked, values)

        layer = getattr(attention, projection)
        self._hooked[site] = (layer, layer.register_forward_hook(mask))

    def _hook_again(self, site: str, projection: str, scale: Tensor) -> Any:
        def before(attention: nn.Module, args: tuple[Any, ...]) -> None:
            layer, handle = self._hooked[site]
            # An adapter that was injected meanwhile wraps the layer, and its part has to be masked too.
            if getattr(attention, projection) is not layer:
                handle.remove()
                self._hook(site, attention, projection, scale)

        return before

    def _after_denoiser(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        self._ran = True
