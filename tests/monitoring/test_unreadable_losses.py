"""Losses that cannot be read from the gradient are refused in their first batch; the remedies that errors name help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from memtrain.callbacks.loss_skipping import LossSkipping
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.errors import ConfigurationError
from memtrain.functional.diffusion import min_snr_weight, signal_to_noise_ratio
from memtrain.monitoring.loss_weight import loss_weights
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from memtrain.signals.denoising_loss import DenoisingLoss
from tests.callbacks.test_monitor import Foreign, fit
from tests.conformance.families import sd3

Loss = Callable[["Host", Tensor, Tensor, Tensor, dict[str, Any]], Any]
"""`(host, prediction, target, timesteps, batch)` to what the training step differentiates."""


def own(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().flatten(1).mean(1)


class Host(Foreign):
    """A module with any loss, under automatic or manual optimization; it keeps each sample's true squared error."""

    def __init__(self, unet: Any, loss: Loss, *, manual: bool = False, rate: float = 1e-2) -> None:
        super().__init__(unet)
        self.loss, self.rate, self.true = loss, rate, list[Tensor]()
        self.automatic_optimization = not manual

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        generator = torch.Generator().manual_seed(len(self.true))
        noise = torch.randn(batch["latents"].shape, generator=generator)
        timesteps = torch.randint(1000, (len(noise),), generator=generator)
        prediction = self.unet(self.noise.add_noise(batch["latents"], noise, timesteps), timesteps, batch["text"])
        self.true.append(own(prediction.sample, noise).detach())
        found = self.loss(self, prediction.sample, noise, timesteps, batch)
        if self.automatic_optimization:
            return found
        self.manual_backward(found["loss"] if isinstance(found, dict) else found)
        self.optimizers().step()
        self.optimizers().zero_grad()
        return found if isinstance(found, dict) else None

    def on_after_backward(self) -> None:
        """Gradients are nobody's business here."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def batches(count: int = 32, *, size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    items = [
        {
            "key": f"k{index}",
            "latents": torch.randn(4, 8, 8, generator=generator),
            "text": torch.randn(5, 16, generator=generator),
            "weight": 0.5 + index / count,
            "mask": (torch.arange(8) < 6).float().expand(1, 8, 8),
        }
        for index in range(count)
    ]
    return DataLoader(items, batch_size=size)


def watch(host: Any, folder: Path, *more: Any, reference: Any = False, data: Any = None, **options: Any) -> Tensor:
    """The recorded losses of a watched run."""
    monitor = MemorizationMonitor([DenoisingLoss()], reference=reference, settings=WatchSettings(calibrate_every=4))
    fit(host, folder, [monitor, *more], data=data or batches(), **{"max_epochs": 1, **options})
    return torch.tensor(read_steps(folder / "records")["denoising_loss"].to_pylist())


def snr_weight(host: Any, timesteps: Tensor) -> Tensor:
    return min_snr_weight(signal_to_noise_ratio(host.noise.alphas_cumprod, timesteps), 5.0, "epsilon")


def min_snr(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
    return (snr_weight(host, timesteps) * own(prediction, target)).mean()


def per_sample(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
    return (batch["weight"] * own(prediction, target)).mean()


def left_out(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
    return (torch.tensor([1.0, 0.0, 1.0, 1.0]) * own(prediction, target)).mean()


def absolute(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
    return F.l1_loss(prediction, target)


def absolute_by_chance(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
    """Its value is the one that the sign of a residual would give a squared error, in every batch."""
    loss = F.l1_loss(prediction, target)
    return loss - loss.detach() + 0.25


def huber(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
    return F.smooth_l1_loss(prediction, target, beta=0.5)


def masked(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
    """The mean over all elements agrees with what is read, batch by batch."""
    return (batch["mask"] * (prediction - target).square()).mean()


def half(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
    return 0.5 * F.mse_loss(prediction, target)


def summed(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
    return F.mse_loss(prediction, target, reduction="sum")


def two_terms(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
    return F.mse_loss(prediction, target) + 0.01 * sum(p.square().sum() for p in host.parameters())


def prior(weight: float) -> Loss:
    """Prior preservation: the second half of the batch are class images."""

    def loss(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
        (ours, theirs), (first, second) = prediction.chunk(2), target.chunk(2)
        return F.mse_loss(ours, first) + weight * F.mse_loss(theirs, second)

    return loss


UNREADABLE = {
    "min-SNR": (min_snr, "do not agree with the loss"),
    "weights per sample": (per_sample, "do not agree with the loss"),
    "samples left out": (left_out, "No gradient reached 1 samples"),
    "L1": (absolute, r"absolute error \(L1\)"),
    "L1 that agrees": (absolute_by_chance, r"absolute error \(L1\)"),
    "Huber": (huber, "do not agree with the loss"),
    "masked": (masked, "No gradient reached 25 % of an image"),
    "half": (half, "0.5 times the loss that was differentiated"),
    "summed": (summed, "1.02e[+]03 times"),
    "prior preservation": (prior(1.0), "2 times"),
    "further terms": (two_terms, "do not agree with the loss"),
}


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_refused_and_what_is_handed_over_is_used(
    pipeline: StableDiffusionPipeline, tmp_path: Path, name: str, manual: bool
) -> None:
    loss, found = UNREADABLE[name]
    # A sum is so large that nothing is left of the model after a few steps.
    host = Host(pipeline.unet, loss, manual=manual, rate=1e-5)
    with pytest.raises(ConfigurationError, match=found) as refused:
        watch(host, tmp_path / "refused", SampleSkipping(), max_epochs=4)
    assert "Remedy" in str(refused.value)
    assert "sample_loss" in str(refused.value)
    # Min-SNR weights seven of eight timesteps by 1, so batches of four show nothing at first.
    assert len(host.true) <= (28 if name == "min-SNR" else 1), "it was found out at once"

    def handing_over(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Any:
        return {
            "loss": loss(host, prediction, target, timesteps, batch),
            "sample_loss": own(prediction, target).detach(),
        }

    host = Host(pipeline.unet, handing_over, manual=manual, rate=1e-5)
    recorded = watch(host, tmp_path / "handed over", SampleSkipping())
    torch.testing.assert_close(recorded, torch.cat(host.true), rtol=1e-6, atol=0)


DECLARED: dict[str, tuple[Loss, Callable[..., Tensor]]] = {
    "min-SNR": (min_snr, lambda host, t, batch: snr_weight(host, t)),
    "weights per sample": (per_sample, lambda host, t, batch: batch["weight"]),
    "half": (half, lambda host, t, batch: torch.full(t.shape, 0.5)),
    "summed": (summed, lambda host, t, batch: torch.full(t.shape, 4.0 * 256)),
    "prior preservation": (prior(1.0), lambda host, t, batch: torch.full(t.shape, 2.0)),
    "weighted prior": (prior(0.3), lambda host, t, batch: torch.tensor([2.0, 2.0, 0.6, 0.6])),
}


@pytest.mark.parametrize("name", DECLARED)
def test_weights_that_are_declared_are_undone(pipeline: StableDiffusionPipeline, tmp_path: Path, name: str) -> None:
    loss, weight = DECLARED[name]
    host: Any = Host(pipeline.unet, loss, manual=name == "half", rate=1e-5 if name == "summed" else 1e-2)
    host.loss_weight = lambda timesteps, batch: weight(host, timesteps, batch)
    recorded = watch(host, tmp_path)
    torch.testing.assert_close(recorded, torch.cat(host.true), rtol=1e-4, atol=0)


def test_a_weight_of_zero_that_is_declared_makes_no_evidence(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    host: Any = Host(pipeline.unet, left_out)
    host.loss_weight = lambda timesteps: torch.tensor([1.0, 0.0, 1.0, 1.0])
    recorded, true = watch(host, tmp_path).view(-1, 4), torch.cat(host.true).view(-1, 4)
    assert recorded[:, 1].isnan().all()
    torch.testing.assert_close(recorded[:, [0, 2, 3]], true[:, [0, 2, 3]], rtol=1e-4, atol=0)


def test_a_loss_weight_without_the_batch_and_with_other_parameters_works() -> None:
    class Gamma:
        def loss_weight(self, timesteps: Tensor, gamma: float = 2.0) -> Tensor:
            return gamma * torch.ones(len(timesteps))

    assert loss_weights(Gamma(), torch.arange(3), batch={"x": 1}).tolist() == [2.0, 2.0, 2.0]
    assert loss_weights(object(), torch.arange(3), batch={"x": 1}) is None


def test_a_factor_in_one_batch_is_enough(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    """The others agree: weights that are 1 most of the time."""

    def sometimes(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
        return F.mse_loss(prediction, target) * (1.1 if len(host.true) == late else 1.0)

    for late, found in ((3, "In 1 of 1 compared batches"), (19, "In 1 of 4 compared batches")):
        host = Host(pipeline.unet, sometimes)
        with pytest.raises(ConfigurationError, match=found):
            watch(host, tmp_path / str(late), max_epochs=4)
        assert len(host.true) == (3 if late == 3 else 20), "the batch itself, later the next update"


def test_it_is_said_where_training_is_over_before(
    pipeline: StableDiffusionPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def last(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
        return F.mse_loss(prediction, target) * (1.1 if len(host.true) == 16 else 1.0)

    watch(Host(pipeline.unet, last), tmp_path, max_epochs=2)
    assert "The flags of this run may be wrong" in caplog.text


def test_a_loss_that_was_never_seen_is_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    class ByHand(Host):
        def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            loss.backward()

    def plain(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Tensor:
        return F.mse_loss(prediction, target)

    host = ByHand(pipeline.unet, plain, manual=True)
    with pytest.raises(ConfigurationError, match=r"never seen[\s\S]*manual_backward\(loss\) instead of loss.backward"):
        watch(host, tmp_path / "refused")
    assert len(host.true) == 1
    watch(Host(pipeline.unet, plain, manual=True), tmp_path / "remedy")

    def handing_over(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Any:
        return {"loss": F.mse_loss(prediction, target), "sample_loss": own(prediction, target)}

    host = ByHand(pipeline.unet, handing_over, manual=True)
    recorded = watch(host, tmp_path / "handed over")
    torch.testing.assert_close(recorded, torch.cat(host.true), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (lambda loss: loss.mean(), r"returned a tensor of shape \(\) as sample_loss for 4 samples"),
        (lambda loss: loss.mean().expand(4), "is the same number for every sample"),
        (lambda loss: -loss, "is negative"),
        (lambda loss: loss.tolist(), "returned a list as sample_loss"),
    ],
    ids=["mean", "repeated mean", "negative", "list"],
)
def test_what_is_handed_over_has_to_be_each_samples(
    pipeline: StableDiffusionPipeline, tmp_path: Path, given: Callable[[Tensor], Any], found: str
) -> None:
    def handing_over(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Any:
        return {"loss": F.mse_loss(prediction, target), "sample_loss": given(own(prediction, target).detach())}

    host = Host(pipeline.unet, handing_over)
    with pytest.raises(ConfigurationError, match=found):
        watch(host, tmp_path)
    assert len(host.true) == 1


def handing_over_huber(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Any:
    each = F.smooth_l1_loss(prediction, target, beta=0.5, reduction="none").flatten(1).mean(1)
    return {"loss": each.mean(), "sample_loss": each.detach()}


def test_what_cannot_wait_for_the_step_needs_a_loss_that_can_be_read(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    watch(Host(pipeline.unet, handing_over_huber), tmp_path / "watched")
    with pytest.raises(ConfigurationError, match="LossSkipping cannot use the sample_loss"):
        watch(Host(pipeline.unet, handing_over_huber), tmp_path / "skipping", LossSkipping())
    with pytest.raises(ConfigurationError, match=r"`reference: paired` cannot use[\s\S]*return `target`"):
        watch(Host(pipeline.unet, handing_over_huber), tmp_path / "paired", reference="paired")

    def plain(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Any:
        return {"loss": F.mse_loss(prediction, target), "sample_loss": own(prediction, target)}

    watch(Host(pipeline.unet, plain), tmp_path / "both", LossSkipping(), reference="paired")


def test_a_target_is_enough_for_the_paired_reference(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    def with_target(host: Host, prediction: Tensor, target: Tensor, timesteps: Tensor, batch: Any) -> Any:
        return {**handing_over_huber(host, prediction, target, timesteps, batch), "target": target}

    host, frozen = (Host(pipeline.unet, with_target, rate=rate) for rate in (1e-2, 0.0))
    recorded = watch(host, tmp_path / "trained", reference="paired")
    watch(frozen, tmp_path / "frozen", reference="paired")
    torch.testing.assert_close(recorded, torch.cat(host.true), rtol=1e-5, atol=0)
    base = torch.tensor(read_steps(tmp_path / "trained" / "records")["base.denoising_loss"].to_pylist()).view(8, 4)
    torch.testing.assert_close(base[[0, 4]], torch.cat(frozen.true).view(8, 4)[[0, 4]], rtol=1e-5, atol=0)


class Measured(Host):
    """With `sample_loss`, for profile and held-out samples."""

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Nothing is validated, but Lightning asks for it where there is a loader."""

    def sample_loss(self, batch: dict[str, Any], timesteps: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(batch["latents"].shape, generator=generator)
        noisy = self.noise.add_noise(batch["latents"], noise, timesteps)
        return own(self.unet(noisy, timesteps, batch["text"]).sample, noise)


def test_undeclared_min_snr_without_any_training_flags_nothing(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """Nothing is learnt, so nothing is memorized; believed as read, ordinary samples were flagged and left out."""
    items: Any = batches(40).dataset
    for item in items:
        item["input_ids"] = torch.tensor([int(item["key"][1:])])
    train, held = DataLoader(items[:24], batch_size=4), DataLoader(items[24:], batch_size=4)

    def run(host: Host, folder: str) -> None:
        monitor = MemorizationMonitor(
            [DenoisingLoss()],
            false_positive_rate=0.05,
            reference_folder=str(tmp_path / "profiles"),
            settings=WatchSettings(heldout_batch=4),
        )
        trainer = Trainer(
            default_root_dir=tmp_path / folder,
            callbacks=[monitor, SampleSkipping()],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            max_epochs=10,
            limit_val_batches=0,
        )
        trainer.fit(host, train, held)

    with pytest.raises(ConfigurationError, match="do not agree with the loss"):
        run(Measured(pipeline.unet, min_snr, rate=0.0), "refused")
    assert set(read_steps(tmp_path / "refused" / "records")["weight"].to_pylist()) <= {1.0}

    class Declared(Measured):
        def loss_weight(self, timesteps: Tensor) -> Tensor:
            return snr_weight(self, timesteps)

    run(Declared(pipeline.unet, min_snr, rate=0.0), "declared")
    weights = read_steps(tmp_path / "declared" / "records")["weight"].to_pylist()
    assert len(weights) == 240
    assert weights.count(1.0) > 230


# Flow matching


class Flow(Foreign):
    """A Stable Diffusion 3 trained with flow matching, preconditioned as in diffusers' scripts or not."""

    def __init__(self, *, preconditioned: bool) -> None:
        torch.nn.Module.__init__(self)
        super(Foreign, self).__init__()
        self.denoiser, self.preconditioned, self.true = sd3(), preconditioned, list[Tensor]()
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        latents, generator = batch["latents"], torch.Generator().manual_seed(batch_idx)
        noise = torch.randn(latents.shape, generator=generator)
        index = torch.randint(1000, (len(latents),), generator=generator)
        timesteps, sigmas = self.scheduler.timesteps[index], self.scheduler.sigmas[index].view(-1, 1, 1, 1)
        noisy = (1 - sigmas) * latents + sigmas * noise
        output = self.denoiser(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=batch["text"][..., :12],
            pooled_projections=batch["text"][:, 0, :12],
            return_dict=False,
        )[0]
        self.true.append(own(output, noise - latents).detach())
        if not self.preconditioned:
            return F.mse_loss(output, noise - latents)
        weighting = 1 + sigmas
        return (weighting * (output * (-sigmas) + noisy - latents).square()).flatten(1).mean(1).mean()

    def on_after_backward(self) -> None:
        """Nothing."""


def test_flow_matching_is_read_and_its_preconditioning_has_to_be_declared(tmp_path: Path) -> None:
    plain: Any = Flow(preconditioned=False)
    torch.testing.assert_close(watch(plain, tmp_path / "plain"), torch.cat(plain.true), rtol=1e-4, atol=0)
    with pytest.raises(ConfigurationError, match="do not agree with the loss"):
        watch(Flow(preconditioned=True), tmp_path / "refused")
    declared: Any = Flow(preconditioned=True)
    declared.loss_weight = lambda timesteps: (1 + timesteps / 1000) * (timesteps / 1000) ** 2
    torch.testing.assert_close(watch(declared, tmp_path / "declared"), torch.cat(declared.true), rtol=1e-3, atol=0)
