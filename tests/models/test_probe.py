"""The probe reads what the attention computes, leaves nothing behind, and raises when it sees nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch.overrides import TorchFunctionMode

from memtrain.errors import ProbeError
from memtrain.functional.attention import token_attention
from memtrain.models.backbones.base import find_backbone, find_denoiser
from memtrain.models.probe import DenoiserProbe, Observation

TEXT = 5


class Tap(TorchFunctionMode):
    """Keeps every query and key over TEXT tokens that reaches scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and args[1].shape[2] == TEXT:
            self.seen.append((args[0].detach(), args[1].detach()))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def unet(pipeline: StableDiffusionPipeline) -> Iterator[UNet2DConditionModel]:
    unet = pipeline.unet.train()
    yield unet
    unet.disable_gradient_checkpointing()
    unet.zero_grad()
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in unet.modules())


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, 8, 8, generator=generator)
    return latents, torch.tensor([10, 500, 900][:batch]), torch.randn(batch, TEXT, 16, generator=generator)


def observation(batch: int = 3) -> Observation:
    return Observation([f"sample {index}" for index in range(batch)])


@contextmanager
def no_hooks_left(unet: UNet2DConditionModel) -> Iterator[None]:
    try:
        yield
    finally:
        assert all(not m._forward_pre_hooks and not m._forward_hooks for m in unet.modules())


def test_queries_and_keys_are_bit_exact_and_readings_follow(unet: UNet2DConditionModel) -> None:
    latents, timesteps, text = inputs()
    with DenoiserProbe(unet) as probe:
        probe.begin(observation())
        with Tap() as tap:
            prediction = unet(latents, timesteps, text).sample
        prediction.square().mean().backward()
        seen = probe.end()
    assert len(tap.seen) == len(probe.sites) == 4
    for (query, key), reading in zip(tap.seen, seen.token_attention.values(), strict=True):
        assert torch.equal(token_attention(query, key), reading)
    assert torch.equal(seen.timesteps, timesteps)
    assert torch.equal(seen.text_embeddings, text)


def test_monitoring_changes_no_gradient(unet: UNet2DConditionModel) -> None:
    def gradients(probe: DenoiserProbe | None) -> list[torch.Tensor]:
        unet.zero_grad()
        if probe:
            probe.begin(observation())
        unet(*inputs()).sample.square().mean().backward()
        return [p.grad.clone() for p in unet.parameters()]

    plain = gradients(None)
    with DenoiserProbe(unet) as probe:
        watched = gradients(probe)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_gradient_checkpointing_reads_the_same_once(unet: UNet2DConditionModel) -> None:
    readings = []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        with DenoiserProbe(unet) as probe:
            probe.begin(observation())
            unet(*inputs()).sample.square().mean().backward()
            readings.append(torch.stack(list(probe.end().token_attention.values())))
    assert torch.equal(*readings)


def test_a_gate_drops_samples_exactly(unet: UNet2DConditionModel) -> None:
    latents, timesteps, text = inputs()
    target = torch.randn_like(latents)
    weights = torch.tensor([1.0, 0.0, 0.5])
    unet.zero_grad()
    (weights * (unet(latents, timesteps, text).sample - target).square().flatten(1).mean(1)).mean().backward()
    expected = [p.grad.clone() for p in unet.parameters()]
    unet.zero_grad()
    with DenoiserProbe(unet) as probe:
        probe.begin(observation(), lambda seen: weights)
        F.mse_loss(unet(latents, timesteps, text).sample, target).backward()
        probe.end()
    for parameter, gradient in zip(unet.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-7, rtol=1e-4)


def test_no_grad_forwards_are_not_counted(unet: UNet2DConditionModel) -> None:
    latents, timesteps, text = inputs()
    with DenoiserProbe(unet) as probe:
        probe.begin(observation())
        with torch.no_grad():
            unet(latents, timesteps + 1, text)
        unet(latents, timesteps, text).sample.mean().backward()
        assert torch.equal(probe.end().timesteps, timesteps)


def test_measuring_needs_no_gradient_and_keeps_the_batch_in_flight(unet: UNet2DConditionModel) -> None:
    latents, timesteps, text = inputs()
    with DenoiserProbe(unet) as probe:
        probe.begin(observation())
        prediction = unet(latents, timesteps, text).sample
        with probe.measure(observation(2)) as held:
            unet(*inputs(2))
        prediction.mean().backward()
        assert len(held.timesteps) == 2
        assert len(held.token_attention) == 4
        assert probe.end().gradient is not None


def test_a_probe_that_saw_nothing_raises(unet: UNet2DConditionModel) -> None:
    with DenoiserProbe(unet) as probe:
        probe.begin(observation())
        with pytest.raises(ProbeError, match="saw no forward pass"):
            probe.end()
        probe.begin(observation())
        unet(*inputs())
        with pytest.raises(ProbeError, match="no gradient reached"):
            probe.end()


def test_a_silent_site_raises(unet: UNet2DConditionModel) -> None:
    with DenoiserProbe(unet) as probe:
        next(iter(probe.sites.values()))._forward_pre_hooks.clear()
        probe.begin(observation())
        unet(*inputs()).sample.mean().backward()
        with pytest.raises(ProbeError, match="1 of 4 attention sites reported nothing"):
            probe.end()


def test_two_training_forwards_and_wrong_key_counts_raise(unet: UNet2DConditionModel) -> None:
    with DenoiserProbe(unet) as probe:
        probe.begin(observation())
        unet(*inputs())
        with pytest.raises(ProbeError, match="ran twice"):
            unet(*inputs())
        probe.begin(observation(2))
        with pytest.raises(ProbeError, match="3 samples, but the batch names 2 keys"):
            unet(*inputs())


def test_hooks_are_gone_after_an_exception(unet: UNet2DConditionModel) -> None:
    with no_hooks_left(unet), pytest.raises(RuntimeError), DenoiserProbe(unet) as probe:
        probe.begin(observation())
        unet(torch.randn(3, 7, 8, 8), *inputs()[1:])


def test_fused_projections_are_refused(unet: UNet2DConditionModel) -> None:
    site = next(m for name, m in unet.named_modules() if name.endswith("attn2"))
    site.fused_projections = True
    try:
        with DenoiserProbe(unet) as probe, pytest.raises(ProbeError, match="unfuse_qkv_projections"):
            probe.begin(observation())
            unet(*inputs())
    finally:
        site.fused_projections = False


def test_site_patterns(unet: UNet2DConditionModel) -> None:
    assert all(name.startswith("up_blocks") for name in DenoiserProbe(unet, sites="up_blocks.*").sites)
    with pytest.raises(ProbeError, match="matches none of 4"):
        DenoiserProbe(unet, sites="nowhere.*")


def test_the_denoiser_is_found_inside_a_module(unet: UNet2DConditionModel) -> None:
    host = torch.nn.ModuleDict({"model": unet, "other": torch.nn.Linear(2, 2)})
    name, module, _ = find_denoiser(host)
    assert (name, module) == ("model", unet)
    assert find_backbone(torch.nn.Linear(2, 2)) is None
    with pytest.raises(ProbeError, match="0 denoisers found"):
        find_denoiser(torch.nn.Linear(2, 2))
    with pytest.raises(ProbeError, match="2 denoisers found"):
        find_denoiser(torch.nn.ModuleList([unet, UNet2DConditionModel.from_config(unet.config)]))
