"""Losses that cannot be read from the gradient are refused, those that can are not; `loss_weight` is what it says."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ConfigurationError
from memtrain.functional.diffusion import loss_from_gradient
from memtrain.models.observation import Observation
from memtrain.monitoring import processes
from memtrain.monitoring.flagging import Flagging
from memtrain.monitoring.loss_check import LossCheck
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.denoising_loss import DenoisingLoss
from tests.callbacks.test_monitor import FixedWeights, Foreign, batches, fit


class Host(Foreign):
    """Makes something of each sample's squared error; keeps the true ones."""

    manual = False

    def __init__(self, unet: Any) -> None:
        super().__init__(unet)
        self.true: list[Tensor] = []
        self.automatic_optimization = not self.manual

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        generator = torch.Generator().manual_seed(len(self.true))
        noise = torch.randn(batch["latents"].shape, generator=generator)
        timesteps = torch.randint(1000, (len(noise),), generator=generator)
        prediction = self.unet(self.noise.add_noise(batch["latents"], noise, timesteps), timesteps, batch["text"])
        losses = (prediction.sample - noise).square().flatten(1).mean(1)
        self.true.append(losses.detach())
        loss = self.loss(losses, timesteps, prediction.sample - noise)
        if not self.manual:
            return loss
        self.manual_backward(loss)
        self.optimizers().step()
        return None

    def on_after_backward(self) -> None:
        """A loss of something else leaves no gradients here."""

    def loss(self, losses: Tensor, timesteps: Tensor, residual: Tensor) -> Any:
        return losses.mean()


def share(timesteps: Tensor) -> Tensor:
    return 0.1 + timesteps / 2000


class Half(Host):
    def loss(self, losses: Tensor, timesteps: Tensor, residual: Tensor) -> Any:
        return 0.5 * losses.mean()


class Quarter(Host):
    manual = True

    def loss(self, losses: Tensor, timesteps: Tensor, residual: Tensor) -> Any:
        return losses.mean() / 4


class Summed(Host):
    def loss(self, losses: Tensor, timesteps: Tensor, residual: Tensor) -> Any:
        return losses.sum()


class Weighted(Host):
    def loss(self, losses: Tensor, timesteps: Tensor, residual: Tensor) -> Any:
        return (share(timesteps) * losses).mean()


class Absolute(Host):
    def loss(self, losses: Tensor, timesteps: Tensor, residual: Tensor) -> Any:
        return residual.abs().mean()


class DeclaredHalf(Half):
    def loss_weight(self, timesteps: Tensor) -> Tensor:
        return torch.full(timesteps.shape, 0.5)


class DeclaredWeighted(Weighted):
    def loss_weight(self, timesteps: Tensor) -> Tensor:
        return share(timesteps)


class Regularized(Host):
    def loss(self, losses: Tensor, timesteps: Tensor, residual: Tensor) -> Any:
        return losses.mean() + 0.01 * sum(p.square().sum() for p in self.parameters())


class Explained(Regularized):
    def loss(self, losses: Tensor, timesteps: Tensor, residual: Tensor) -> Any:
        return {"loss": super().loss(losses, timesteps, residual), "sample_loss": losses.detach()}


class ManualPlain(Host):
    manual = True


def watch(host: Host, folder: Path, *, signals: list[Any] | None = None, more: Any = (), **options: Any) -> None:
    monitor = MemorizationMonitor(
        signals or [DenoisingLoss()], reference=False, settings=WatchSettings(calibrate_every=4)
    )
    fit(host, folder, [monitor, *more], **options)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Half, "In 1 of 1 compared batches, their mean is 0.5 times the loss"),
        (Quarter, "0.25 times"),
        (Summed, "4 times"),
        (Weighted, r"0\.\d+ times"),
        (Absolute, "absolute error"),
        (Regularized, "sample_loss"),
    ],
)
def test_a_loss_that_cannot_be_read_is_refused(
    pipeline: StableDiffusionPipeline, tmp_path: Path, kind: type[Host], found: str
) -> None:
    with pytest.raises(ConfigurationError, match=found):
        watch(kind(pipeline.unet), tmp_path)


@pytest.mark.parametrize("kind", [Host, DeclaredHalf, DeclaredWeighted, Explained, ManualPlain])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=str)
def test_a_loss_that_can_be_read_is_read(
    pipeline: StableDiffusionPipeline,
    tmp_path: Path,
    kind: type[Host],
    options: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Weights of mitigations, one of them 0, change nothing."""
    host = kind(pipeline.unet)
    watch(host, tmp_path, more=[FixedWeights()], **({} if kind.manual and "accumulate" in str(options) else options))
    losses = torch.tensor(read_steps(tmp_path / "records")["denoising_loss"].to_pylist())
    torch.testing.assert_close(losses, torch.cat(host.true), rtol=0.02 if "precision" in options else 1e-4, atol=0)
    assert "losses read" not in caplog.text


def test_signals_that_read_no_loss_do_not_care(
    pipeline: StableDiffusionPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = MemorizationMonitor(
        [AttentionEntropy()], flag_by="attention_entropy", reference=False, settings=WatchSettings(calibrate_every=4)
    )
    host = Absolute(pipeline.unet)
    fit(host, tmp_path, [monitor])
    assert read_steps(tmp_path / "records").num_rows == len(torch.cat(host.true)), "it trained to its end"
    assert not [record for record in caplog.records if record.name.endswith("loss_check")]


def test_of_several_losses_the_one_that_reaches_the_denoiser_counts(
    pipeline: StableDiffusionPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Two(ManualPlain):
        def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            other = torch.nn.Parameter(torch.tensor(7.0))
            super().manual_backward(other.square())
            super().manual_backward(loss)
            super().manual_backward(other.square())

    watch(Two(pipeline.unet), tmp_path)
    assert not [record for record in caplog.records if record.name.endswith("loss_check")]


@pytest.mark.parametrize("of_the_other", [1.0, 0.5])
def test_processes_decide_together(of_the_other: float) -> None:
    """What one of them finds stops all: the others would wait for it."""
    check, observation = LossCheck(), Observation(["a", "b"])
    observation.gradient = torch.tensor([[1.0, -3.0, 2.0], [0.5, 2.0, -1.0]])
    loss = loss_from_gradient(observation.gradient).mean()
    check.differentiates(loss)
    check.gradient_arrives()
    check.batch_ends(observation, None)
    other = (0.0, 1.0, of_the_other, math.inf, 0.0, 0.0, 0.0, 0.0)
    host: Any = SimpleNamespace(rank=0, gather=lambda rows: [*rows, other])
    if of_the_other == 1.0:
        check.decide(host)
    else:
        with pytest.raises(ConfigurationError, match=r"In 1 of 2 compared batches, their mean is 0\.5 times"):
            check.decide(host)


def test_the_first_batches_are_decided_on_at_once_and_later_ones_before_they_are_evidence(
    pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    decide, add = LossCheck.decide, Flagging.add

    def deciding(self: LossCheck, *args: Any, **options: Any) -> None:
        happened.append(f"decide {len(self._compared)}")
        decide(self, *args, **options)

    def adding(self: Flagging, visits: Any, **options: Any) -> None:
        happened.append(f"add {len(visits)}")
        add(self, visits, **options)

    monkeypatch.setattr(LossCheck, "decide", deciding)
    monkeypatch.setattr(Flagging, "add", adding)
    monitor = MemorizationMonitor([DenoisingLoss()], reference=False, settings=WatchSettings(calibrate_every=16))
    fit(Host(pipeline.unet), tmp_path, [monitor], max_epochs=5)
    assert happened == ["decide 0", "add 0", *["decide 1"] * 8, "decide 8", "add 16", "decide 4", "add 4"]


def test_a_loss_weight_that_is_no_method_is_refused_before_training(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    host: Any = Host(pipeline.unet)
    host.loss_weight = 0.5
    with pytest.raises(ConfigurationError, match=r"Host.loss_weight is 0.5"):
        watch(host, tmp_path)
    assert not host.true


@pytest.mark.parametrize("weight", [0.5, torch.tensor(0.5)], ids=["number", "scalar"])
def test_a_loss_weight_for_no_sample_is_refused(pipeline: StableDiffusionPipeline, tmp_path: Path, weight: Any) -> None:
    host: Any = Host(pipeline.unet)
    host.loss_weight = lambda timesteps: weight
    with pytest.raises(ConfigurationError, match=r"for 4 timesteps\n.*Expected: a method loss_weight\(timesteps"):
        watch(host, tmp_path)
    assert len(batches()) == 4


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_run_of_few_batches_is_judged_by_those_there_were(count: int, caplog: pytest.LogCaptureFixture) -> None:
    """Batches of a single sample, where a scalar is no loss that was repeated."""
    check, gradient = LossCheck(), torch.tensor([[0.5, 1.0, 1.5, 0.2]])
    for _ in range(count):
        check.differentiates(2 * loss_from_gradient(gradient).mean())
        check.gradient_arrives()
        check.batch_ends(Observation(["a"], gradient=gradient), None)
    host: Any = SimpleNamespace(rank=0, gather=lambda rows: rows)
    check.decide(host, over=True)
    assert (f"In {count} of {count} compared batches, their mean is 0.5 times" in caplog.text) == (count > 0)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_what_is_kept_of_few_samples_makes_up_the_batch(count: int) -> None:
    assert float(processes.share_of_mean(torch.ones(count))) == (1.0 if count else 0.0)
    assert float(processes.share_of_mean(torch.zeros(count))) == count
