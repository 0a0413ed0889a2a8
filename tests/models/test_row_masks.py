"""Every row has its own mask: as if each had been alone under it."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from memtrain.errors import ProbeError
from memtrain.models.neuron_mask import NeuronMask
from memtrain.models.row_masks import row_masks

DOWN = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
UP = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
MASKS = [NeuronMask({DOWN: [0, 3]}), None, NeuronMask({UP: [2], DOWN: [5]}, factor=0.5)]


def run(unet: UNet2DConditionModel, rows: list[int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, words = torch.randn(3, 4, 8, 8, generator=generator), 3 * torch.randn(3, 5, 16, generator=generator)
    with torch.no_grad():
        return unet(latents[rows], 500, words[rows]).sample


def test_every_row_is_what_it_is_alone_under_its_mask(pipeline: StableDiffusionPipeline) -> None:
    unet = pipeline.unet
    plain = run(unet, [0, 1, 2])
    with row_masks(unet, MASKS):
        together = run(unet, [0, 1, 2])
        twice = run(unet, [0, 1, 2, 0, 1, 2])
    for row, mask in enumerate(MASKS):
        if mask is None:
            assert torch.equal(together[row], plain[row])
            continue
        with mask.on(unet):
            alone = run(unet, [row])
        torch.testing.assert_close(together[row], alone[0])
        assert not torch.allclose(together[row], plain[row], atol=1e-4)
    torch.testing.assert_close(twice, torch.cat([together, together]))
    assert torch.equal(run(unet, [0, 1, 2]), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_nothing_is_hooked_without_a_mask(pipeline: StableDiffusionPipeline) -> None:
    with row_masks(pipeline.unet, [None, None]):
        assert not any(module._forward_hooks for module in pipeline.unet.modules())


def test_another_number_of_rows_and_unknown_neurons_are_refused(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(ProbeError, match="2 rows met 3 row masks"), row_masks(pipeline.unet, MASKS):
        run(pipeline.unet, [0, 1])
    for mask in (NeuronMask({DOWN: [99]}), NeuronMask({"nowhere": [0]})):
        with pytest.raises(ProbeError), row_masks(pipeline.unet, [mask]):
            pass
    assert not any(module._forward_hooks for module in pipeline.unet.modules())
