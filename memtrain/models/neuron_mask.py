"""A neuron mask: value channels of attention sites, switched off or scaled.

Source: NeMo (Hintersdorf et al., "Finding NeMo", NeurIPS 2024): a few output channels of the value projections carry a
memorized image. With these channels at zero, it does not appear. Masking suppresses what a prompt triggers. It does not
erase what the weights hold ("Finding DoRI", arXiv 2507.16880).

The mask acts by hooks (:mod:`memtrain.models.value_hooks`), so LoRA layers that are added later are masked too. `bake`
writes it into the weights instead. Both give the same output.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from memtrain.errors import ConfigurationError, DataError, ProbeError
from memtrain.files.shown import shown
from memtrain.files.text import json_of
from memtrain.files.whole import written_whole
from memtrain.functional.neurons import scale_neurons
from memtrain.models.backbones.base import Backbone, find_backbone, unwrap
from memtrain.models.value_hooks import ValueHooks
from memtrain.models.weights_file import tensors

FORMAT = "memtrain.neuron_mask.1"


class NeuronMask:
    """Value channels to scale.

    Use it as `with mask.on(denoiser):`, or with :meth:`attach` and :meth:`detach`.

    Args:
        channels: the output channels of the value projection, by site.
        factor: the factor of these channels; 0 switches them off.

    Raises:
        ProbeError: if there is no channel.
    """

    def __init__(self, channels: Mapping[str, Sequence[int]], *, factor: float = 0.0) -> None:
        self.channels = {site: sorted(set(map(int, chosen))) for site, chosen in channels.items() if len(chosen)}
        self.factor = factor
        if not self.channels:
            raise ProbeError(
                "A neuron mask without a channel", expected="at least one channel", remedy="remove the mask"
            )
        self.rows: Tensor | None = None
        """The masked samples of the coming forwards, `(B,)` bool; None for all."""
        self._hooks: ValueHooks | None = None

    def __len__(self) -> int:
        return sum(map(len, self.channels.values()))

    def __or__(self, other: NeuronMask) -> NeuronMask:
        """Return a mask with both masks' channels and this one's factor."""
        sites = [*self.channels, *(site for site in other.channels if site not in self.channels)]
        both = {site: [*self.channels.get(site, []), *other.channels.get(site, [])] for site in sites}
        return NeuronMask(both, factor=self.factor)

    def on(self, denoiser: nn.Module) -> NeuronMask:
        """Attach the mask, for use in a `with` statement."""
        return self.attach(denoiser)

    def __enter__(self) -> NeuronMask:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        hooks = self._hooks
        self.detach()
        if kind is None and hooks is not None and hooks.ran:
            hooks.require_reached()

    def attach(self, denoiser: nn.Module) -> NeuronMask:
        """Put the mask on a denoiser (wrapped or not).

        Raises:
            ProbeError: if it is already attached, or if a site or channel does not exist.
        """
        if self._hooks is not None:
            raise ProbeError("The mask is attached already", remedy="detach() it first")
        backbone, sites = self._found(denoiser)
        device = next(denoiser.parameters()).device

        def edit(site: str, values: Tensor) -> Tensor:
            return scale_neurons(values, scales[site], rows=self.rows)

        hooks = ValueHooks(denoiser, sites, backbone=backbone, edit=edit)
        scales = {site: self.scale(site, hooks.layer(site)).to(device) for site in sites}
        self._hooks = hooks.attach()
        return self

    def detach(self) -> None:
        """Remove the mask; nothing happens if it is not attached."""
        if self._hooks is not None:
            self._hooks.detach()
        self._hooks, self.rows = None, None

    def bake(self, denoiser: nn.Module) -> None:
        """Write the mask into the weights: rows of the value projections times `factor`. This cannot be undone.

        Raises:
            ProbeError: if a site or channel does not exist, or if a projection is not a plain linear layer.
        """
        for site, layer in self._layers(denoiser).items():
            scale = self.scale(site, layer)
            with torch.no_grad():
                layer.weight.mul_(scale.to(layer.weight)[:, None])
                if layer.bias is not None:
                    layer.bias.mul_(scale.to(layer.bias))

    @contextmanager
    def baked(self, denoiser: nn.Module) -> Iterator[None]:
        """Within the context, the mask is in the weights. Afterwards they are restored bit for bit.

        Raises:
            ProbeError: see :meth:`bake`.
        """
        parameters = [parameter for layer in self._layers(denoiser).values() for parameter in layer.parameters()]
        kept = [parameter.detach().clone() for parameter in parameters]
        try:
            self.bake(denoiser)
            yield
        finally:
            with torch.no_grad():
                for parameter, before in zip(parameters, kept, strict=True):
                    parameter.copy_(before)

    def save(self, path: Path) -> None:
        """Write a safetensors file: one int64 tensor per site, factor and format in its metadata."""
        tensors = {site: torch.tensor(chosen) for site, chosen in self.channels.items()}
        with written_whole(path) as unfinished:
            save_file(tensors, unfinished, metadata={"format": FORMAT, "factor": json.dumps(self.factor)})

    @staticmethod
    def load(path: Path) -> NeuronMask:
        """Read a file that :meth:`save` wrote.

        Raises:
            ProbeError: if the file holds something else.
        """
        try:
            found, metadata = tensors(path, "a neuron mask")
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {shown(metadata.get('format'))!r}")
            for site, chosen in found.items():
                if chosen.dim() != 1 or chosen.dtype.is_floating_point or chosen.dtype == torch.bool:
                    raise ValueError(f"{shown(site)!r} is {chosen.dtype} of shape {tuple(chosen.shape)}")
            factor = json_of(metadata.get("factor", ""), f"{path}: 'factor' of its metadata")
            if not isinstance(factor, int | float):
                raise ValueError(f"its factor is {shown(factor)!r}")
            return NeuronMask({site: chosen.tolist() for site, chosen in found.items()}, factor=float(factor))
        except (ConfigurationError, DataError, ValueError, OverflowError) as error:
            raise ProbeError(
                f"{path} is not a neuron mask: {str(error).splitlines()[0]}",
                expected=f"a safetensors file of format {FORMAT}, with whole numbers for each site",
                remedy="check the path",
            ) from error

    def scale(self, site: str, layer: nn.Module) -> Tensor:
        """Return the factor of each channel of a site's value projection, `(C,)`.

        Raises:
            ProbeError: if the mask names channels that the layer does not have.
        """
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
        return scale

    def sites(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """Return the masked attention modules of a denoiser, by name.

        Raises:
            ProbeError: if a module does not exist.
        """
        return self._found(denoiser)[1]

    def _found(self, denoiser: nn.Module) -> tuple[Backbone, dict[str, nn.Module]]:
        backbone = find_backbone(denoiser)
        known = {} if backbone is None else backbone.sites(unwrap(denoiser))
        unknown = [site for site in self.channels if site not in known]
        if backbone is None or unknown:
            raise ProbeError(
                f"{len(unknown)} of {len(self.channels)} masked sites are not in {type(unwrap(denoiser)).__name__}",
                expected=f"sites such as {next(iter(known), 'none: no backbone knows this denoiser')!r}",
                remedy="use a mask that was made for this model",
            )
        return backbone, {site: known[site] for site in self.channels}

    def _layers(self, denoiser: nn.Module) -> dict[str, nn.Linear]:
        backbone, sites = self._found(denoiser)
        layers = {}
        for site, attention in sites.items():
            layer = getattr(attention, backbone.value_projection(attention))
            if type(layer) is not nn.Linear:
                raise ProbeError(
                    f"The value projection of {site!r} is a {type(layer).__name__}",
                    expected="torch.nn.Linear",
                    remedy="merge adapters into the weights first",
                )
            layers[site] = layer
        return layers
