"""A neuron mask for each row of a batch, so that prompts with different masks share a forward pass.

It works like :class:`memtrain.models.neuron_mask.NeuronMask`, by hooks on the value projections. Rows without a mask
stay the same bit for bit. With classifier-free guidance the batch holds the masks' rows once per half, and both halves
are masked, as in NeMo.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from memtrain.errors import ProbeError
from memtrain.models.backbones.base import find_backbone, unwrap
from memtrain.models.neuron_mask import NeuronMask
from memtrain.models.value_hooks import ValueHooks


@contextmanager
def row_masks(denoiser: nn.Module, masks: Sequence[NeuronMask | None]) -> Iterator[None]:
    """Mask every row of the coming forwards with its own mask.

    Args:
        denoiser: the denoiser, wrapped or not.
        masks: one mask for each row, None for rows without a mask. A batch may be a multiple of them: the masks apply
            to its first `len(masks)` rows, to the next ones, and so on.

    Raises:
        ProbeError: if a site or channel does not exist, a forward has another number of rows, or a masked site was not
            reached.
    """
    given = [mask for mask in masks if mask is not None]
    if not given:
        yield
        return
    found = {site: module for mask in given for site, module in mask.sites(denoiser).items()}
    backbone = find_backbone(denoiser)
    assert backbone is not None
    device = next(unwrap(denoiser).parameters()).device
    scales: dict[str, Tensor] = {}

    def edit(site: str, values: Tensor) -> Tensor:
        scale = scales[site]
        if len(values) % len(scale):
            raise ProbeError(
                f"A forward of {len(values)} rows met {len(scale)} row masks",
                expected="as many rows, or a multiple",
                remedy="give one mask, or None, for each row of the batch",
            )
        return values * scale.to(values).repeat(len(values) // len(scale), 1, 1)

    hooks = ValueHooks(denoiser, found, backbone=backbone, edit=edit)
    for site in found:
        layer = hooks.layer(site)
        masking = [mask if mask is not None and site in mask.channels else None for mask in masks]
        plain = torch.ones(int(getattr(layer, "out_features", 0)))
        rows = [plain if mask is None else mask.scale(site, layer) for mask in masking]
        scales[site] = torch.stack(rows)[:, None].to(device)
    hooks.attach()
    try:
        yield
        if hooks.ran:
            hooks.require_reached()
    finally:
        hooks.detach()
