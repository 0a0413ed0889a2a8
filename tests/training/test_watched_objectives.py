"""With every objective the recorded losses are the samples' squared errors, however values are compared."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from memtrain.callbacks.loss_skipping import LossSkipping
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.module import TextImageDataModule
from memtrain.errors import ConfigurationError
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.training.objective import Objective
from memtrain.training.text_to_image import TextToImageModule
from memtrain.training.timesteps import Range, UShaped
from tests.callbacks.test_monitor import fit
from tests.conftest import encoded_image

OBJECTIVES: dict[str, Objective] = {
    "min-SNR": Objective(min_snr_gamma=5.0, timesteps=UShaped()),
    "debiased, weighted": Objective(weighting="debiased", timesteps=Range(50, 800)),
    "perturbed": Objective(noise_offset=0.1, input_perturbation=0.3),
    "huber": Objective(criterion="huber", min_snr_gamma=5.0),
    "smooth_l1": Objective(criterion="smooth_l1", huber_schedule="exponential"),
    "l1, perturbed": Objective(criterion="l1", input_perturbation=0.3),
    "masked": Objective(),
    "huber, masked, weighted": Objective(criterion="huber", weighting="as_velocity"),
}


class Own(TextToImageModule):
    """Does not learn; marks its batches, and computes what should be recorded, and trained on, by itself."""

    def __init__(self, pretrained: str, name: str) -> None:
        super().__init__(pretrained, learning_rate=0.0, objective=OBJECTIVES[name], ema_decay=None, seed=0)
        self.name = name
        self.expected: list[float] = []
        self.losses: list[tuple[float, float]] = []
        # Outside of the module tree, and of what the probe sees.
        self.twin = (copy.deepcopy(self.denoiser),)

    def marked(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [sum(map(ord, key)) % 3 for key in batch["key"]]
        if "masked" in self.name:
            mask = torch.zeros(len(rows), 1, 8, 8)
            for index, row in enumerate(rows):
                mask[index, :, row : row + 4, : row + 3] = 1.0
            batch["loss_mask"] = mask
        if "weighted" in self.name:
            batch["weight"] = torch.tensor([1.0 + row for row in rows])
        return batch

    def sample_loss(self, batch: dict[str, Any], timesteps: Tensor, generator: torch.Generator) -> Tensor:
        return super().sample_loss(self.marked(batch), timesteps, generator)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        found = super().training_step(self.marked(batch), batch_idx)
        self.losses.append((found["loss"].item(), self.compute(batch)))
        return found

    @torch.no_grad()
    def compute(self, batch: dict[str, Any]) -> float:
        """The loss; keeps each sample's squared error."""
        objective, latents = self.objective, batch["latents"]
        generator = self.step_generator(self.trainer.fit_loop.total_batch_idx, 0)
        snr = self.scheduler.alphas_cumprod / (1 - self.scheduler.alphas_cumprod)
        timesteps = objective.draw_timesteps(len(latents), generator=generator, snr=snr)
        noise = torch.randn(latents.shape, generator=generator)
        if objective.noise_offset:
            noise = noise + 0.1 * torch.randn(len(latents), 4, 1, 1, generator=generator)
        shown = noise
        if objective.input_perturbation:
            shown = noise + 0.3 * torch.randn(noise.shape, generator=generator)
        noisy = self.scheduler.add_noise(latents, shown, timesteps)
        text = self.text_encoder(batch["input_ids"])[0]
        errors = self.twin[0](noisy, timesteps, text).sample - noise
        ratio = snr[timesteps]
        weight = {
            "debiased": ratio.rsqrt(),
            "as_velocity": 1 + 1 / ratio,
            "none": torch.ones_like(ratio),
        }[objective.weighting]
        if objective.min_snr_gamma:
            weight = weight * ratio.clamp(max=5.0) / ratio
        if "weight" in batch:
            weight = weight * batch["weight"]
        c = 0.9 / (1 + ratio.rsqrt()) ** 2 + 0.1
        if objective.huber_schedule == "exponential":
            c = 0.1 ** (timesteps / 1000)
        c = c.view(-1, 1, 1, 1)
        trained = {
            "mse": errors**2,
            "l1": errors.abs(),
            "huber": 2 * c * ((errors**2 + c**2).sqrt() - c),
            "smooth_l1": 2 * ((errors**2 + c**2).sqrt() - c),
        }[objective.criterion]
        mask = batch.get("loss_mask")
        losses = []
        for index in range(len(latents)):
            shows = slice(None) if mask is None else mask[index, 0].bool()
            self.expected.append(float(errors[index, :, shows].square().mean()))
            losses.append(weight[index] * trained[index, :, shows].mean())
        return float(torch.stack(losses).mean())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("images")
    for index in range(18):
        (folder / f"{index}.png").write_bytes(encoded_image(index, size=(16, 16)))
    rows = [json.dumps({"file_name": f"{index}.png", "text": "ab cd e"[: 1 + index % 7]}) for index in range(18)]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return str(folder)


def data(images: str) -> LightningDataModule:
    return TextImageDataModule(
        images, resolution=16, batch_size=4, heldout="split", heldout_fraction=0.5, cache_latents=True, seed=0
    )


def watch(module: TextToImageModule, images: str, folder: Path, reference: Any, *more: Any) -> dict[str, Any]:
    monitor = MemorizationMonitor(
        [DenoisingLoss()],
        reference=reference,
        paired_every=1,
        false_positive_rate=0.2,
        minimum_visits=2,
        settings=WatchSettings(reference_timesteps=(500,), reference_draws=1, online_families=False),
    )
    fit(module, folder, [monitor, *more], data=data(images), max_epochs=1, limit_val_batches=0)
    return read_steps(folder / "records").to_pydict()


ALWAYS = {
    ("min-SNR", True),
    ("debiased, weighted", "paired"),
    ("perturbed", True),
    ("smooth_l1", "paired"),
    ("l1, perturbed", False),
    *(("huber, masked, weighted", reference) for reference in (True, "paired", False)),
}
"""What every run of the tests tries; the others are slow together."""


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        pytest.param(name, reference, marks=[] if (name, reference) in ALWAYS else [pytest.mark.slow])
        for name in OBJECTIVES
        for reference in (True, "paired", False)
    ],
)
def test_recorded_losses_are_the_squared_errors(
    name: str, reference: Any, pipeline_folder: Path, images: str, tmp_path: Path
) -> None:
    module = Own(str(pipeline_folder), name)
    records = watch(module, images, tmp_path, reference)
    assert len(module.losses) == 2
    for trained, expected in module.losses:
        assert trained == pytest.approx(expected, rel=1e-4)
    assert records["denoising_loss"] == pytest.approx(module.expected, rel=1e-3)
    if reference == "paired":
        assert records["base.denoising_loss"] == pytest.approx(module.expected, rel=1e-3), "it does not learn"


def test_squared_errors_without_weights_are_the_plain_mean_to_the_last_bit(pipeline_folder: Path) -> None:
    """What a run without options records and trains is what it was before there were any."""
    module = TextToImageModule(str(pipeline_folder), ema_decay=None, seed=0)
    batch = {"latents": torch.randn(4, 4, 8, 8), **module.tokens(["a", "b c", "d", ""])}
    timesteps = torch.tensor([1, 300, 700, 999])
    noise = torch.randn(4, 4, 8, 8, generator=module.step_generator(7))
    noisy, _ = module.parts.noisy_and_target(batch["latents"], noise, timesteps)
    prediction = module.denoiser(noisy, timesteps, module.encode_text(batch["input_ids"])).sample
    plain = (prediction - noise).square().flatten(1).mean(1)
    denoised = module._denoise(batch, timesteps, module.step_generator(7))
    losses, handed = denoised.losses(module.parts, module.objective, batch=batch)
    assert not handed, "the watch reads the gradient"
    assert torch.equal(losses, plain)
    assert torch.equal((module.loss_weight(timesteps, batch) * losses).mean(), plain.mean())


def test_a_mitigation_that_needs_losses_early_is_refused_with_another_criterion(
    pipeline_folder: Path, images: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="LossSkipping cannot use the sample_loss"):
        watch(Own(str(pipeline_folder), "huber"), images, tmp_path, False, LossSkipping(published="liu2024"))
