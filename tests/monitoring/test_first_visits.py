"""A profile measured at first visits: the base model's values during training, kept, and the same on every process."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.module import TextImageDataModule
from memtrain.errors import ConfigurationError
from memtrain.evidence.base_profile import ReferenceProfile
from memtrain.models.probe import DenoiserProbe
from memtrain.monitoring.first_visits import FirstVisits
from memtrain.monitoring.options import WatchSettings
from memtrain.monitoring.paired_reference import PairedReference
from memtrain.records import read_steps, read_table
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.training.lora import LoRA
from memtrain.training.text_to_image import TextToImageModule
from tests.conftest import train
from tests.monitoring.test_profiled_samples import Ranks, everything, host, measured, name_them

__all__ = ["host"]


def run(
    folder: Path,
    images: Path,
    pretrained: Path,
    *,
    rate: float = 1e-2,
    lora: bool = False,
    stop: int = 7,
    resume: bool = False,
    reference: Any = "first_visit",
    profiles: Path | None = None,
) -> MemorizationMonitor:
    seed_everything(0)
    adapters = LoRA(rank=2) if lora else None
    module = TextToImageModule(str(pretrained), learning_rate=rate, ema_decay=None, lora=adapters)
    data = TextImageDataModule(
        str(images), resolution=16, batch_size=4, heldout_fraction=0.34, cache_latents=True, caption_dropout=0.2
    )
    monitor = MemorizationMonitor(
        [DenoisingLoss()],
        reference=reference,
        reference_folder=None if profiles is None else str(profiles),
        false_positive_rate=0.1,
        minimum_visits=2,
        settings=WatchSettings(
            reference_timesteps=(200, 600), reference_draws=1, calibrate_every=2, heldout_batch=3, maximum_timestep=1000
        ),
    )
    train(folder, module, data, callbacks=[monitor], stop=stop, resume=resume)
    return monitor


def kept(folder: Path) -> dict[str, torch.Tensor]:
    """Values by content."""
    profile = ReferenceProfile(folder.parent, [DenoisingLoss()], ["denoising_loss"], timesteps=(200, 600), draws=1)
    profile.fingerprint = folder.name
    contents = profile.parts.contents()
    values, _ = profile.parts.read(pa.concat_arrays(contents.chunks))
    return dict(zip(contents.to_pylist(), torch.from_numpy(values), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_values_are_those_of_the_base_model_though_training_goes_on(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path, lora: bool
) -> None:
    """A second run that learns nothing measures the same batches before any training."""
    images, folders = write_folder(30), []
    for name, rate in (("trained", 1e-2), ("frozen", 0.0)):
        run(tmp_path / name, images, pipeline_folder, rate=rate, lora=lora, stop=5)
        (folder,) = (tmp_path / name / "profiles").iterdir()
        folders.append(folder)
    trained, frozen = map(kept, folders)
    assert folders[0].name == folders[1].name and trained.keys() == frozen.keys()
    for content, values in frozen.items():
        torch.testing.assert_close(trained[content], values, atol=1e-5, rtol=1e-4)
    losses = [
        torch.tensor(read_steps(tmp_path / name / "records")["denoising_loss"].to_pylist())
        for name in ("trained", "frozen")
    ]
    assert (losses[0] - losses[1]).nan_to_num().abs().max() > 1e-3, "training had changed the model"
    profiles = folders[0].parent
    run(tmp_path / "later", images, pipeline_folder, lora=lora, stop=1, reference=True, profiles=profiles)
    everything = kept(folders[0])
    assert len(everything) > len(trained)
    assert all(torch.equal(everything[content], values) for content, values in trained.items())


@pytest.mark.slow
def test_a_run_that_was_cut_comes_to_the_same_evidence(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    images = write_folder(40)
    run(tmp_path / "whole", images, pipeline_folder, stop=11)
    run(tmp_path / "cut", images, pipeline_folder, stop=7)
    run(tmp_path / "cut", images, pipeline_folder, stop=11, resume=True)
    for read in (read_steps, lambda folder: read_table(folder, "evidence")):
        tables = [read(tmp_path / name / "records").to_pydict() for name in ("whole", "cut")]
        assert repr(tables[0]) == repr(tables[1])
    assert any(score != 0 for score in tables[0]["score"])


NAMES = [DenoisingLoss()], ["denoising_loss"]


class Together(Ranks):
    """One of two processes, which are threads here."""

    processes = 2
    meeting, rows = threading.Barrier(2), [[], []]  # type: ignore[var-annotated]

    def gather(self, rows: list[Any]) -> list[Any]:
        self.rows[self.number] = rows
        self.meeting.wait(20)
        found = [*self.rows[0], *self.rows[1]]
        self.meeting.wait(20)
        return found

    def broadcast(self, value: Any) -> Any:
        found = self.gather([value])[0]
        return found

    def barrier(self) -> None:
        self.meeting.wait(20)


@pytest.mark.parametrize("by_data", [True, False])
def test_processes_measure_a_part_each_and_know_all(
    host: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_data: bool
) -> None:
    if by_data:
        name_them(monkeypatch)
    before = everything(host, measured(host, tmp_path / "true"))
    keys = [sample.key for sample in host.data.train_dataset.samples]
    held = [sample.key for sample in host.data.heldout_dataset.samples]
    profiles, counts = [], []

    def process(number: int) -> None:
        module = copy.deepcopy(host.module)
        mine = Together(module, data=host.data, folder=tmp_path)
        mine.number = number
        paired = PairedReference(module.unet)
        profile = ReferenceProfile(tmp_path / "first", *NAMES, timesteps=(100, 700), draws=1)
        probe = DenoiserProbe(module.unet).attach()
        visits = FirstVisits(mine, profile, probe=probe, paired=paired, most=4)
        visits.open(resumed=False)
        with torch.no_grad():
            for value in module.unet.parameters():
                value.mul_(1.5)
        measure, count = profile.values, []
        profile.values = lambda probe, loss, batch, **options: (  # type: ignore[method-assign]
            count.append(len(batch["key"])),
            measure(probe, loss, batch, **options),
        )[1]
        # In the batches of a profile that is measured before training, in turn, so that each has the same noise.
        for part in (keys, held):
            for start in range(0, len(part), 8):
                visits.meet([*part[start : start + 8], part[0]])
        visits.flush()
        probe.detach()
        profiles.append(profile)
        counts.append(sum(count))

    threads = [threading.Thread(target=process, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(counts) == len(keys) + len(held), "nothing is measured twice"
    assert min(counts) >= 12
    whole = torch.tensor([row < len(part) // 8 * 8 for part in (keys, held) for row in range(len(part))])
    for profile in profiles:
        found = everything(host, profile)
        assert found.isfinite().all()
        torch.testing.assert_close(found[:, whole], before[:, whole], atol=1e-5, rtol=1e-4)
    again = measured(host, tmp_path / "first")
    assert torch.equal(everything(host, again), everything(host, profiles[0])), "a later run finds all of it"


def test_what_cannot_be_measured_is_refused(host: Ranks, tmp_path: Path) -> None:
    probe = DenoiserProbe(host.module.unet)
    paired = PairedReference(host.module.unet)
    profile = ReferenceProfile(tmp_path, [DenoisingLoss()], ["denoising_loss"])
    host.module.beside = nn.Linear(2, 2)
    with pytest.raises(ConfigurationError, match=r"2 trained parameters, first 'beside\.weight', are outside"):
        FirstVisits(host, profile, probe=probe, paired=paired, most=4)
    host.data = object()
    with pytest.raises(ConfigurationError, match="finds no sample of object by its key"):
        FirstVisits(host, profile, probe=probe, paired=paired, most=4)
