"""Reentrant checkpointing is found out without a training step."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch.utils.checkpoint import checkpoint

from memtrain.errors import ProbeError
from memtrain.models.checkpointing import is_reentrant, refuse_reentrant


@pytest.mark.parametrize(
    ("function", "reentrant"),
    [
        (functools.partial(checkpoint, use_reentrant=True), True),
        (functools.partial(checkpoint, use_reentrant=False), False),
        (checkpoint, True),
        (lambda module, *args: checkpoint(module.__call__, *args, use_reentrant=True), True),
        (lambda module, *args: checkpoint(module.__call__, *args, use_reentrant=False), False),
        (lambda module, *args: module(*args), False),
        (lambda first, second, third: None, False),
    ],
)
def test_every_way_to_checkpoint_is_recognised(function: Any, reentrant: bool) -> None:
    assert is_reentrant(function) == reentrant
    with torch.no_grad():
        assert is_reentrant(function) == reentrant


def test_a_denoiser_is_refused_only_while_it_is_checkpointed_reentrantly(pipeline: StableDiffusionPipeline) -> None:
    unet = UNet2DConditionModel.from_config(pipeline.unet.config)
    refuse_reentrant(unet)
    unet.enable_gradient_checkpointing()
    refuse_reentrant(unet)
    unet.enable_gradient_checkpointing(functools.partial(checkpoint, use_reentrant=True))
    with pytest.raises(ProbeError, match=r"down_blocks\.0 is checkpointed reentrantly"):
        refuse_reentrant(unet)
    unet.disable_gradient_checkpointing()
    refuse_reentrant(unet)
