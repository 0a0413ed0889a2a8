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
from memtrain.models.probe import Observation
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
        (Half, "in 4 of 4 batches compared, their mean is 0.5 times the loss"),
        (Quarter, "0.25 times"),
        (Summed, "4 times"),
        (Weighted, r"0\.\d+ to 0\.\d+ times"),
        (Absolute, "times the loss that was differentiated"),
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


def test_a_factor_in_some_batches_and_a_short_run_are_warned_of(
    pipeline: StableDiffusionPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Sometimes(Host):
        def loss(self, losses: Tensor, timesteps: Tensor, residual: Tensor) -> Any:
            return losses.mean() * (3 if len(self.true) == 2 else 1)

    watch(Sometimes(pipeline.unet), tmp_path / "some")
    assert caplog.text.count("in 1 of 4 batches compared, their mean is 3 times") == 1
    watch(Half(pipeline.unet), tmp_path / "short", max_epochs=1, limit_train_batches=2)
    assert "in 2 of 2 batches compared, their mean is 0.5 times" in caplog.text


def test_a_loss_that_was_never_seen_is_warned_of(
    pipeline: StableDiffusionPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class ByHand(ManualPlain):
        def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            loss.backward()

    watch(ByHand(pipeline.unet), tmp_path)
    assert "The loss of the training step was never seen" in caplog.text


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
def test_processes_decide_together(caplog: pytest.LogCaptureFixture, of_the_other: float) -> None:
    """What one of them finds stops all or none: the others would wait for it."""
    check, nothing = LossCheck(), Observation([])
    for _ in range(4):
        check.batch_ends(nothing, None)
    others = [(0.5, math.inf), (of_the_other, math.inf)]
    host: Any = SimpleNamespace(rank=0, gather=lambda rows: [*rows, *others])
    if of_the_other == 1.0:
        check.decide(host)
        assert "in 1 of 2 batches compared, their mean is 0.5 times" in caplog.text
    else:
        with pytest.raises(ConfigurationError, match="in 2 of 2 batches"):
            check.decide(host)


def test_it_looks_at_the_first_batches_only(
    pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    decided: list[int] = []
    add, decide = LossCheck.batch_ends, LossCheck.decide

    def batch_ends(self: LossCheck, *args: Any) -> None:
        add(self, *args)
        asked.append(len(self._compared))

    def counting(self: LossCheck, *args: Any, **options: Any) -> None:
        decided.append(len(self._compared))
        decide(self, *args, **options)

    monkeypatch.setattr(LossCheck, "batch_ends", batch_ends)
    monkeypatch.setattr(LossCheck, "decide", counting)
    monitor = MemorizationMonitor(
        [DenoisingLoss()],
        reference=False,
        settings=WatchSettings(calibrate_every=16),
    )
    fit(Host(pipeline.unet), tmp_path, [monitor], max_epochs=5)
    assert asked == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 0, 0, 0, 0]
    assert decided == [0, 8, 0]


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
