"""Samples that are measured take the path of training batches, with captions, prompt masks and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.module import TextImageDataModule
from memtrain.errors import ConfigurationError
from memtrain.functional.diffusion import per_sample_mse
from memtrain.models.observation import Observation
from memtrain.monitoring.measurement import HeldoutSamples
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.training.text_to_image import TextToImageModule
from tests.callbacks.test_monitor import Foreign, fit
from tests.conformance.families import pixart

KEYS = [f"sample {index}" for index in range(40)]


class Samples(Dataset[dict[str, Any]]):
    """Random latents and text, of which the first words are the prompt."""

    def __init__(self, keys: list[str], *, width: int, factor: float) -> None:
        self.samples = [SimpleNamespace(key=key, caption=f"a {key}") for key in keys]
        self.width, self.factor = width, factor

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key = self.samples[index].key
        generator = torch.Generator().manual_seed(KEYS.index(key))
        return {
            "key": key,
            "latents": self.factor * torch.randn(4, 8, 8, generator=generator),
            "text": torch.randn(7, self.width, generator=generator),
            "input_ids": torch.tensor([KEYS.index(key)]),
            "prompt_mask": torch.arange(7) < 4,
        }

    def unique(self) -> Samples:
        return self


class Data(LightningDataModule):
    """Somebody's, with everything that measuring takes."""

    def __init__(self, *, width: int = 16, factor: float = 1.0) -> None:
        super().__init__()
        self.train_dataset = Samples(KEYS[:8], width=width, factor=factor)
        self.heldout_dataset = Samples(KEYS[8:], width=width, factor=factor)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, batch_size=4)

    def unique_dataloader(self, dataset: Samples) -> DataLoader[Any]:
        return DataLoader(dataset, batch_size=16)


class Measured(Foreign):
    """Somebody's, with `sample_loss`."""

    def sample_loss(self, batch: dict[str, Any], timesteps: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(batch["latents"].shape, generator=generator)
        noisy = self.noise.add_noise(batch["latents"], noise, timesteps)
        return per_sample_mse(self.unet(noisy, timesteps, batch["text"]).sample, noise)


class Halving(Measured):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "halved": batch["latents"] / 2}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "latents": batch["halved"]}


class Deep(LightningModule):
    """A diffusion transformer, whose text has no place for BOS."""

    def __init__(self) -> None:
        super().__init__()
        self.denoiser = pixart()

    def sample_loss(self, batch: dict[str, Any], timesteps: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(batch["latents"].shape, generator=generator)
        prediction = self.denoiser(
            batch["latents"] + noise,
            encoder_hidden_states=batch["text"],
            timestep=timesteps,
            encoder_attention_mask=batch["prompt_mask"].float(),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
        return per_sample_mse(prediction.chunk(2, dim=1)[0], noise)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        generator = torch.Generator().manual_seed(batch_idx)
        return self.sample_loss(batch, torch.randint(1000, (4,), generator=generator), generator).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def watch(signals: list[Any] | None = None, **options: Any) -> MemorizationMonitor:
    few: dict[str, Any] = {"minimum_visits": 2, "false_positive_rate": 0.1}
    few["settings"] = WatchSettings(reference_timesteps=(200, 600), reference_draws=1)
    few["flag_by"] = (signals or [DenoisingLoss()])[0].name
    return MemorizationMonitor(signals or [DenoisingLoss()], **{**few, **options})


def measured(monitor: MemorizationMonitor) -> tuple[Tensor, Tensor]:
    """The profile, and the evidence from held-out samples."""
    assert monitor.calibration.heldout is not None
    return monitor.engine.running[1].profile._values, monitor.calibration.heldout.total


@pytest.mark.filterwarnings("ignore:You have overridden .on_:UserWarning")
def test_hooks_around_the_transfer_are_called(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    """What a module makes of its batches is measured: the same as if the data were so from the start."""
    monitors = [watch() for _ in range(3)]
    fit(Measured(pipeline.unet), tmp_path / "plain", [monitors[0]], data=Data(), max_epochs=1)
    fit(Measured(pipeline.unet), tmp_path / "halves", [monitors[1]], data=Data(factor=0.5), max_epochs=1)
    trainer = fit(Halving(pipeline.unet), tmp_path / "hooks", [monitors[2]], data=Data(), max_epochs=1)
    plain, halves, hooks = map(measured, monitors)
    for expected, found, without in zip(halves, hooks, plain, strict=True):
        torch.testing.assert_close(found, expected)
        assert (without - expected).abs().max() > 1e-4
    assert trainer.global_step == 2


def test_no_caption_is_dropped_from_what_is_measured(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    images, found = str(write_folder(24)), []
    for share in (0.0, 0.9):
        data = TextImageDataModule(
            images, resolution=16, batch_size=4, heldout_fraction=0.34, caption_dropout=share, cache_latents=True
        )
        monitor = watch()
        module = TextToImageModule(str(pipeline_folder), ema_decay=None, seed=0)
        fit(module, tmp_path / str(share), [monitor], data=data, max_epochs=1, limit_val_batches=0)
        found.append(measured(monitor)[0])
        rows = read_steps(tmp_path / str(share) / "records")
    assert torch.equal(*found)
    assert any(loss != loss for loss in rows["denoising_loss"].to_pylist()), "training does drop captions"


@pytest.mark.parametrize("reference", [True, "paired"])
def test_prompt_masks_reach_everything_that_is_measured(tmp_path: Path, reference: Any) -> None:
    signals: list[Any] = [AttentionEntropy(tokens="prompt"), DenoisingLoss()]
    monitor = watch(signals, reference=reference, paired_every=1)
    fit(Deep(), tmp_path, [monitor], data=Data(width=12), max_epochs=1)
    assert monitor.calibration.heldout is not None
    assert monitor.calibration.heldout.total.isfinite().all()


@pytest.mark.parametrize("reference", [True, "paired"])
def test_a_module_in_half_precision_is_measured(
    pipeline: StableDiffusionPipeline, tmp_path: Path, reference: Any
) -> None:
    monitor = watch(reference=reference, paired_every=1)

    class Half(Measured):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            generator = torch.Generator().manual_seed(batch_idx)
            return self.sample_loss(batch, torch.randint(1000, (4,), generator=generator), generator).mean()

        def on_after_backward(self) -> None: ...

    fit(Half(pipeline.unet), tmp_path, [monitor], data=Data(), max_epochs=1, precision="bf16-true")
    assert monitor.calibration.heldout is not None
    assert monitor.calibration.heldout.total.isfinite().all()


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_our_own_module_refuses_weights_in_half_precision(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, precision: Any
) -> None:
    data = TextImageDataModule(str(write_folder(4)), resolution=16, batch_size=2, heldout_fraction=0.0)
    with pytest.raises(ConfigurationError, match=r"set trainer\.precision to bf16-mixed"):
        fit(TextToImageModule(str(pipeline_folder), ema_decay=None), tmp_path, [], data=data, precision=precision)


class Shaped(Dataset[dict[str, Any]]):
    """Ten samples of two shapes, in turn."""

    shapes = [(8, 8) if row % 3 else (8, 16) for row in range(10)]

    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"key": f"{row}", "latents": torch.full((1, *self.shapes[row]), float(row))}


@pytest.mark.parametrize("rank", [0, 1])
def test_heldout_samples_of_several_shapes_are_measured_shape_by_shape(rank: int) -> None:
    forwards: list[tuple[int, ...]] = []

    def sample_loss(batch: dict[str, Any], timesteps: Tensor, generator: torch.Generator) -> Tensor:
        forwards.append(tuple(batch["latents"].shape))
        return batch["latents"].mean(dim=(1, 2, 3))

    class Probe:
        @contextmanager
        def measure(self, observation: Observation) -> Iterator[Observation]:
            yield observation

    host: Any = SimpleNamespace(
        rank=rank,
        world_size=2,
        device=torch.device("cpu"),
        families=None,
        module=SimpleNamespace(sample_loss=sample_loss),
        moved=lambda batch: batch,
        names=lambda batch: batch["key"],
        forward_context=nullcontext,
    )
    probe: Any = Probe()

    def read(observation: Observation) -> Tensor:
        assert observation.sample_loss is not None
        return observation.sample_loss[:, None]

    held = HeldoutSamples(host, Shaped(), probe, read=read, maximum_timestep=10, seed=0)
    for turn in range(4):
        forwards.clear()
        visits = held.measure(3)
        expected = {f"{(6 * turn + 3 * rank + offset) % 10}" for offset in range(3)}
        assert set(visits.keys) == expected
        assert visits.values[:, 0].tolist() == [float(key) for key in visits.keys]
        assert len(visits.timesteps) == len(visits.lengths) == 3
        assert len(forwards) == 2, "each process does as many forwards"
