"""`trainer.fit(module, train, validation)` without a data module: the validation samples are held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ConfigurationError, DataError
from memtrain.monitoring.data_protocol import lacking_to_measure
from memtrain.monitoring.host import Host
from memtrain.monitoring.loader_data import LoaderData
from memtrain.monitoring.options import WatchSettings
from tests.callbacks.test_monitor import Foreign


class Measured(Foreign):
    """A module with `sample_loss`, whose batches are what `unpack` makes latents and text embeddings of."""

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        return batch["latents"], batch["text"]

    def predict(self, batch: Any, timesteps: Tensor, noise: Tensor) -> Tensor:
        latents, text = self.unpack(batch)
        prediction = self.unet(self.noise.add_noise(latents, noise, timesteps), timesteps, text).sample
        return (prediction - noise).square().flatten(1).mean(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        latents, _ = self.unpack(batch)
        return self.predict(batch, torch.randint(1000, (len(latents),)), torch.randn(latents.shape)).mean()

    def sample_loss(self, batch: Any, timesteps: Tensor, generator: torch.Generator) -> Tensor:
        latents, _ = self.unpack(batch)
        return self.predict(batch, timesteps, torch.randn(latents.shape, generator=generator))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing."""


class Pairs(Measured):
    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        return batch[0], batch[1]


def items(count: int, *, first: int = 0, name: str = "k") -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(first)
    return [
        {
            "key": f"{name}{index}",
            "latents": torch.randn(4, 8, 8, generator=generator),
            "text": torch.randn(5, 16, generator=generator),
            "input_ids": torch.tensor([first, index]),
        }
        for index in range(count)
    ]


def pairs(rows: list[dict[str, Any]]) -> list[Any]:
    return [(row["latents"], row["text"]) for row in rows]


def loaders(rows: list[Any], held: list[Any]) -> tuple[DataLoader[Any], DataLoader[Any]]:
    return DataLoader(rows, batch_size=4), DataLoader(held, batch_size=4)


def fit(module: Any, folder: Path, data: Any, reference: Any, epochs: int = 2) -> MemorizationMonitor:
    monitor = MemorizationMonitor(
        reference=reference,
        reference_folder=str(folder / "profiles"),
        false_positive_rate=0.1,
        minimum_visits=2,
        paired_every=1,
        settings=WatchSettings(calibrate_every=2, heldout_batch=4, reference_timesteps=(200, 600), reference_draws=1),
    )
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[monitor],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        max_epochs=epochs,
    )
    trainer.fit(module, *data)
    return monitor


@pytest.mark.parametrize("reference", [True, "paired"])
def test_validation_samples_calibrate(pipeline: StableDiffusionPipeline, tmp_path: Path, reference: Any) -> None:
    data = loaders(items(8), items(10, first=1, name="held"))
    monitor = fit(Measured(pipeline.unet), tmp_path, data, reference, epochs=10)
    assert monitor.calibration.heldout is not None
    assert set(monitor.calibration.heldout.row) == {f"held{index}" for index in range(10)}
    assert monitor.calibration.threshold < float("inf")


def test_pairs_of_tensors_calibrate_a_paired_comparison(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    data = loaders(pairs(items(8)), pairs(items(10, first=1)))
    monitor = fit(Pairs(pipeline.unet), tmp_path / "paired", data, "paired", epochs=6)
    assert monitor.calibration.heldout is not None
    assert len(monitor.calibration.heldout.row) == 10
    with pytest.raises(DataError, match=r"by their content in a list[\s\S]*`reference: paired`"):
        fit(Pairs(pipeline.unet), tmp_path / "profile", data, True)


def test_the_loaders_own_collate_function_makes_the_batches(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    def collate(rows: list[Any]) -> dict[str, Any]:
        latents, text = (torch.stack(part) for part in zip(*rows, strict=True))
        return {"latents": latents, "text": text, "key": [f"{value:.4f}" for value in latents[:, 0, 0, 0].tolist()]}

    rows, held = pairs(items(8)), pairs(items(10, first=1))
    data = [DataLoader(part, batch_size=4, collate_fn=collate) for part in (rows, held)]
    monitor = fit(Measured(pipeline.unet), tmp_path, data, "paired", epochs=6)
    assert monitor.calibration.heldout is not None
    assert set(monitor.calibration.heldout.row) == {f"{row[0][0, 0, 0]:.4f}" for row in held}


def test_names_that_training_and_validation_share_are_refused(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="have the same name 'k0'"):
        fit(Measured(pipeline.unet), tmp_path, loaders(items(8), items(10, first=1)), True)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(items(8))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_what_is_missing_is_named(
    pipeline: StableDiffusionPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = [DataLoader(Stream(), batch_size=4), DataLoader(items(10, first=1), batch_size=4)]
    with pytest.raises(ConfigurationError, match="one training loader with a map-style dataset\n"):
        fit(Measured(pipeline.unet), tmp_path / "stream", data, True)
    fit(Measured(pipeline.unet), tmp_path / "none", [DataLoader(items(8), batch_size=4)], "paired")
    assert "without one validation loader with a map-style dataset" in caplog.text
    monitor = fit(Measured(pipeline.unet), tmp_path / "paired", data, "paired")
    assert monitor.calibration.heldout is not None, "the training samples are not measured, so they may be a stream"
    both = LoaderData(data[1], [data[1], data[1]])
    assert lacking_to_measure(Host(Measured(pipeline.unet), data=both)) == [
        "one validation loader with a map-style dataset"
    ]
