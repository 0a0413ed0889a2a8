"""What the probe gates, counts and refuses; what it reads is in tests/conformance/test_probe*.py."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from memtrain.errors import ProbeError
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe

TEXT = 5


@pytest.fixture
def unet(pipeline: StableDiffusionPipeline) -> Iterator[UNet2DConditionModel]:
    unet = pipeline.unet.train()
    yield unet
    unet.disable_gradient_checkpointing()
    unet.zero_grad()
    unet.eval()
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in unet.modules())


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, 8, 8, generator=generator)
    return latents, torch.tensor([10, 500, 900][:batch]), torch.randn(batch, TEXT, 16, generator=generator)


def observation(batch: int = 3) -> Observation:
    return Observation([f"sample {index}" for index in range(batch)])


def test_a_gate_drops_samples_exactly(unet: UNet2DConditionModel) -> None:
    latents, timesteps, text = inputs()
    target = torch.randn_like(latents)
    weights = torch.tensor([1.0, 0.0, 0.5])
    unet.zero_grad()
    (weights * (unet(latents, timesteps, text).sample - target).square().flatten(1).mean(1)).mean().backward()
    expected = [p.grad.clone() for p in unet.parameters()]
    unet.zero_grad()
    with DenoiserProbe(unet, sites="*") as probe:
        probe.begin(observation(), lambda seen: weights)
        F.mse_loss(unet(latents, timesteps, text).sample, target).backward()
        probe.end()
    for parameter, gradient in zip(unet.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-7, rtol=1e-4)


def test_no_grad_forwards_are_not_counted(unet: UNet2DConditionModel) -> None:
    latents, timesteps, text = inputs()
    with DenoiserProbe(unet, sites="*") as probe:
        probe.begin(observation())
        with torch.no_grad():
            unet(latents, timesteps + 1, text)
        unet(latents, timesteps, text).sample.mean().backward()
        assert torch.equal(probe.end().timesteps, timesteps)


def test_measuring_needs_no_gradient_and_keeps_the_batch_in_flight(unet: UNet2DConditionModel) -> None:
    latents, timesteps, text = inputs()
    with DenoiserProbe(unet, sites="*") as probe:
        probe.begin(observation())
        prediction = unet(latents, timesteps, text).sample
        with probe.measure(observation(2)) as held:
            unet(*inputs(2))
        prediction.mean().backward()
        assert len(held.timesteps) == 2
        assert len(held.token_attention) == 4
        assert probe.end().gradient is not None


def test_a_probe_that_saw_nothing_raises(unet: UNet2DConditionModel) -> None:
    with DenoiserProbe(unet, sites="*") as probe:
        probe.begin(observation())
        with pytest.raises(ProbeError, match="saw no forward pass"):
            probe.end()
        probe.begin(observation())
        unet(*inputs())
        with pytest.raises(ProbeError, match="no gradient reached"):
            probe.end()


def test_a_silent_site_raises(unet: UNet2DConditionModel) -> None:
    with DenoiserProbe(unet, sites="*") as probe:
        next(iter(probe.sites.values()))._forward_pre_hooks.clear()
        probe.begin(observation())
        unet(*inputs()).sample.mean().backward()
        with pytest.raises(ProbeError, match="1 of 4 attention sites reported nothing"):
            probe.end()


def test_two_training_forwards_and_wrong_key_counts_raise(unet: UNet2DConditionModel) -> None:
    with DenoiserProbe(unet, sites="*") as probe:
        probe.begin(observation())
        unet(*inputs())
        with pytest.raises(ProbeError, match="ran twice"):
            unet(*inputs())
        probe.begin(observation(2))
        with pytest.raises(ProbeError, match="3 samples, but the batch names 2 keys"):
            unet(*inputs())


def test_site_patterns(unet: UNet2DConditionModel) -> None:
    assert all(name.startswith("up_blocks") for name in DenoiserProbe(unet, sites="up_blocks.*").sites)
    with pytest.raises(ProbeError, match="matches none of 4"):
        DenoiserProbe(unet, sites="nowhere.*")


def test_a_penalty_on_frozen_projections_is_refused(unet: UNet2DConditionModel) -> None:
    for parameter in unet.parameters():
        parameter.requires_grad_(False)
    unet.conv_out.requires_grad_(True)
    try:
        with (
            DenoiserProbe(unet, differentiable=True) as probe,
            pytest.raises(ProbeError, match="would have no gradient"),
        ):
            probe.begin(observation())
            unet(*inputs())
    finally:
        unet.requires_grad_(True)
