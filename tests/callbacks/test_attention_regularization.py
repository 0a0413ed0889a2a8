"""The penalty on attention that moves away from the base model's: its value, its gradient, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.callbacks.attention_regularization import AttentionRegularization
from memtrain.callbacks.mitigation import Flags
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ConfigurationError
from memtrain.functional.attention import entropy
from memtrain.models.probe import DenoiserProbe, Observation
from memtrain.signals.denoising_loss import DenoisingLoss
from tests.callbacks.test_monitor import Foreign, fit


def observation(change: list[float]) -> Observation:
    uniform = torch.full((len(change), 4), 0.25)
    reference = math.log(4) - torch.tensor(change)[:, None]
    return Observation(
        [str(value) for value in change],
        token_attention={"site": uniform},
        reference={"attention_entropy": reference},
    )


def flags(ever: list[bool]) -> Flags:
    return Flags(torch.tensor(ever), torch.tensor(ever), torch.zeros(len(ever)))


def test_the_hinge_is_two_sided_and_for_flagged_samples() -> None:
    seen = observation([0.05, 0.5, -0.5, 0.5])
    chosen = flags([True, True, True, False])
    penalty = AttentionRegularization(strength=2.0, margin=0.1).penalty(seen, chosen)
    torch.testing.assert_close(penalty, torch.tensor([0.0, 0.8, 0.8, 0.0]), atol=1e-6, rtol=0)
    everyone = AttentionRegularization(strength=2.0, margin=0.1, samples="all").penalty(seen, chosen)
    torch.testing.assert_close(everyone, torch.tensor([0.0, 0.8, 0.8, 0.8]), atol=1e-6, rtol=0)


def test_visits_with_a_dropped_caption_are_not_penalized() -> None:
    seen = observation([0.5, 0.5])
    seen.caption_dropped = [True, False]
    for samples in ("all", "flagged"):
        penalty = AttentionRegularization(strength=2.0, samples=samples).penalty(seen, flags([True, True]))
        torch.testing.assert_close(penalty, torch.tensor([0.0, 0.8]), atol=1e-6, rtol=0)


class Regularization(AttentionRegularization):
    """Without the demand for a profile, which a foreign module cannot be measured for."""

    needs_reference = ()

    def penalty(self, observation: Observation, flags: Flags) -> Tensor:
        observation.reference = {"attention_entropy": torch.ones(len(observation.keys), 1)}
        return super().penalty(observation, flags)


class ByHand(Foreign):
    """The same penalty written into the loss."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        observation = Observation(batch["key"])
        with DenoiserProbe(self.unet, differentiable=True) as probe:
            probe.begin(observation)
            loss = super().training_step(batch, batch_idx)
            readings = torch.stack(list(observation.token_attention.values()), dim=1)
        change = (entropy(readings) - 1).abs() - 0.1
        return loss + 0.5 * F.relu(change).mean()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_penalty_adds_its_gradient_to_any_hosts(
    pipeline: StableDiffusionPipeline, tmp_path: Path, accumulate: int
) -> None:
    ours, by_hand, without = Foreign(pipeline.unet), ByHand(pipeline.unet), Foreign(pipeline.unet)
    monitor, regularization = MemorizationMonitor(reference=False), Regularization(strength=0.5, samples="all")
    fit(ours, tmp_path / "a", [monitor, regularization], accumulate_grad_batches=accumulate)
    fit(by_hand, tmp_path / "b", [], accumulate_grad_batches=accumulate)
    fit(without, tmp_path / "c", [], accumulate_grad_batches=accumulate)
    assert len(ours.gradients) == 8
    for found, expected, plain in zip(ours.gradients, by_hand.gradients, without.gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3)
        assert (plain - expected).abs().max() > 1e-4


def test_it_needs_a_reference_and_the_entropy(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    callbacks = [MemorizationMonitor(reference=False), AttentionRegularization()]
    with pytest.raises(ConfigurationError, match="monitor measures none"):
        fit(Foreign(pipeline.unet), tmp_path, callbacks)
    callbacks = [MemorizationMonitor([DenoisingLoss()]), AttentionRegularization()]
    with pytest.raises(ConfigurationError, match=r"needs the signal \['attention_entropy'\]"):
        fit(Foreign(pipeline.unet), tmp_path, callbacks)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="strength=0"):
        AttentionRegularization(strength=0)
