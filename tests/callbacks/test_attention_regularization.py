"""The penalty on attention that moves away from the base model's: its value, its gradient, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.callbacks.attention_regularization import AttentionRegularization
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.module import TextImageDataModule
from memtrain.errors import ConfigurationError
from memtrain.evidence.flags import Flags
from memtrain.functional.attention import entropy
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.monitoring.mitigation import Needs
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.training.text_to_image import TextToImageModule
from tests.callbacks.test_monitor import Foreign, fit
from tests.conftest import train


def observation(change: list[float]) -> Observation:
    uniform = torch.full((len(change), 4), 0.25)
    # As if held-out samples' entropy had risen by 0.2, and spread by 0.05.
    reference = math.log(4) - 0.2 - torch.tensor(change)[:, None]
    return Observation(
        [str(value) for value in change],
        token_attention={"site": uniform},
        reference={"attention_entropy": reference},
        level={"attention_entropy": torch.full_like(reference, 0.2)},
        spread={"attention_entropy": torch.full_like(reference, 0.05)},
    )


def flags(ever: list[bool]) -> Flags:
    return Flags(torch.tensor(ever), torch.tensor(ever), torch.zeros(len(ever)))


def test_the_hinge_is_two_sided_and_for_flagged_samples() -> None:
    seen = observation([0.05, 0.5, -0.5, 0.5])
    chosen = flags([True, True, True, False])
    penalty = AttentionRegularization(strength=2.0, margin=2.0).penalty(seen, chosen)
    torch.testing.assert_close(penalty, torch.tensor([0.0, 0.8, 0.8, 0.0]), atol=1e-6, rtol=0)
    everyone = AttentionRegularization(strength=2.0, margin=2.0, samples="all").penalty(seen, chosen)
    torch.testing.assert_close(everyone, torch.tensor([0.0, 0.8, 0.8, 0.8]), atol=1e-6, rtol=0)


def test_visits_with_a_dropped_caption_are_not_penalized() -> None:
    seen = observation([0.5, 0.5])
    seen.caption_dropped = [True, False]
    for samples in ("all", "flagged"):
        penalty = AttentionRegularization(strength=2.0, samples=samples).penalty(seen, flags([True, True]))
        torch.testing.assert_close(penalty, torch.tensor([0.0, 0.8]), atol=1e-6, rtol=0)


def test_where_the_held_out_level_is_not_known_nothing_is_penalized() -> None:
    attention = torch.softmax(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), 1).requires_grad_()
    column = torch.tensor([[math.nan], [0.1], [0.1]])
    seen = Observation(
        ["a", "b", "c"],
        token_attention={"site": attention},
        reference={"attention_entropy": torch.full((3, 1), 0.1)},
        level={"attention_entropy": column},
        spread={"attention_entropy": column.roll(1, 0)},
    )
    penalty = AttentionRegularization(strength=2.0, margin=1.0).penalty(seen, flags([True] * 3))
    assert penalty.gt(0).tolist() == [False, False, True]
    (gradient,) = torch.autograd.grad(penalty.sum(), attention)
    assert gradient[:2].eq(0).all()
    assert gradient[2].ne(0).any()


class Watching(AttentionRegularization):
    """Remembers what it saw and what it asked for."""

    def penalty(self, observation: Observation, flags: Flags) -> Tensor:
        self.seen.append((observation, observation.entropy().detach()))
        penalty = super().penalty(observation, flags)
        self.penalties.append(penalty.detach())
        return penalty


def test_the_base_model_itself_is_hardly_penalized(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    module = TextToImageModule(str(pipeline_folder), ema_decay=None, learning_rate=0.0)
    data = TextImageDataModule(str(write_folder(40)), heldout_fraction=0.4, resolution=16, batch_size=8)
    watching = Watching(strength=1.0, samples="all")
    watching.seen, watching.penalties = [], []
    train(tmp_path / "run", module, data, callbacks=[MemorizationMonitor(), watching], stop=12)
    standardised, spreads = [], []
    for seen, found in watching.seen:
        base, level, spread = (part["attention_entropy"] for part in (seen.reference, seen.level, seen.spread))
        counted = seen.timesteps < 800
        assert spread[counted].isfinite().all()
        assert spread[~counted].isnan().all()
        standardised.append(((found - base - level) / spread)[counted])
        spreads.append(spread[counted])
    assert 0.5 < float(torch.cat(standardised).square().mean().sqrt()) < 2.0
    assert float(torch.cat(watching.penalties).mean()) < 0.1 * float(torch.cat(spreads).mean())


class Regularization(AttentionRegularization):
    """Without the demand for a profile, which a foreign module cannot be measured for."""

    def needs(self) -> Needs:
        return Needs(attention_graph=True)

    def penalty(self, observation: Observation, flags: Flags) -> Tensor:
        ones = torch.ones(len(observation.keys), 1)
        observation.reference = {"attention_entropy": 0.5 * ones}
        observation.level = {"attention_entropy": 0.5 * ones}
        observation.spread = {"attention_entropy": 0.05 * ones}
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
    with pytest.raises(ConfigurationError, match="monitor measures no profile"):
        fit(Foreign(pipeline.unet), tmp_path, callbacks)
    callbacks = [MemorizationMonitor([DenoisingLoss()]), AttentionRegularization()]
    with pytest.raises(ConfigurationError, match=r"needs the signal \['attention_entropy'\]"):
        fit(Foreign(pipeline.unet), tmp_path, callbacks)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="strength=0"):
        AttentionRegularization(strength=0)
