"""Values are edited where a site makes them, and the hooks know training forwards from others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memtrain.errors import ProbeError
from memtrain.models.backbones.base import find_backbone
from memtrain.models.value_hooks import ValueHooks
from tests.conformance.families import build, call, gradient_checkpointing


def watched(unet: Any) -> tuple[ValueHooks, list[tuple[str, bool]]]:
    """Hooks on every site that halve the values of training, and what they saw."""
    backbone = find_backbone(unet)
    assert backbone is not None
    seen: list[tuple[str, bool]] = []

    def edit(site: str, values: Tensor) -> Tensor:
        seen.append((site, hooks.training))
        return values * 0.5 if hooks.training else values

    hooks = ValueHooks(unet, backbone.sites(unet), backbone=backbone, edit=edit)
    return hooks.attach(), seen


def gradients(unet: Any) -> list[Tensor]:
    unet.zero_grad()
    arguments, _ = call("unet")
    unet(**arguments).sample.square().mean().backward()
    return [parameter.grad.clone() for parameter in unet.parameters()]


def test_forwards_with_gradients_are_training_and_others_are_not() -> None:
    unet: Any = build("unet")
    hooks, seen = watched(unet)
    arguments, _ = call("unet")
    unet(**arguments)
    assert seen == [(site, True) for site in hooks.sites]
    seen.clear()
    with torch.no_grad():
        unet(**arguments)
    assert seen == [(site, False) for site in hooks.sites]
    hooks.require_reached()
    hooks.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpointing_computes_again_is_edited_again(reentrant: bool) -> None:
    plain: Any = build("unet")
    watched(plain)
    expected = gradients(plain)
    unet: Any = build("unet")
    gradient_checkpointing(unet, reentrant)
    hooks, seen = watched(unet)
    for found, right in zip(gradients(unet), expected, strict=True):
        torch.testing.assert_close(found, right, atol=1e-7, rtol=1e-4)
    assert sorted(seen) == sorted(2 * [(site, True) for site in hooks.sites])


@pytest.mark.slow
def test_a_compiled_denoiser_is_edited_too() -> None:
    plain: Any = build("unet")
    watched(plain)
    unet: Any = build("unet")
    hooks, _ = watched(unet)
    compiled: Any = torch.compile(unet, backend="eager")
    arguments, _ = call("unet")
    for _ in range(2):
        torch.testing.assert_close(compiled(**arguments).sample, plain(**arguments).sample, atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(compiled(**arguments).sample, plain(**arguments).sample, atol=1e-5, rtol=1e-4)
        hooks.require_reached()
    torch._dynamo.reset()


def test_a_site_that_the_forward_did_not_pass_raises() -> None:
    unet: Any = build("unet")
    hooks, _ = watched(unet)
    with pytest.raises(ProbeError, match="4 of 4 masked sites were not reached"):
        hooks.require_reached()
    arguments, _ = call("unet")
    unet(**arguments)
    hooks.require_reached()
    site = list(hooks.sites)[1]
    hooks.layer(site)._forward_hooks.clear()
    unet(**arguments)
    with pytest.raises(ProbeError, match=f"1 of 4 masked sites were not reached, first '{site}'"):
        hooks.require_reached()
