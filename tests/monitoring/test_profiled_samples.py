"""A profile of samples that the data name without reading them: the same values, and nothing is read twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from memtrain.data.dataset import CaptionedImages
from memtrain.data.module import TextImageDataModule
from memtrain.errors import RecordError
from memtrain.evidence.base_profile import ReferenceProfile
from memtrain.functional.diffusion import per_sample_mse
from memtrain.models.probe import DenoiserProbe
from memtrain.monitoring.host import Host
from memtrain.monitoring.profiled_samples import measure_profile
from memtrain.signals.denoising_loss import DenoisingLoss


class Module(nn.Module):
    """A denoiser of pixels."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def sample_loss(self, batch: dict[str, Any], timesteps: Tensor, generator: torch.Generator) -> Tensor:
        images = batch["pixel_values"].mean(dim=1, keepdim=True).expand(-1, 4, -1, -1)
        noise = torch.randn(images.shape, generator=generator)
        text = nn.functional.one_hot(batch["input_ids"], 16).float()
        return per_sample_mse(self.unet(images + noise, timesteps, text).sample, noise)


class Ranks(Host):
    """A host that is one of several, whose others say nothing."""

    number, processes = 0, 1

    @property
    def rank(self) -> int:
        return self.number

    @property
    def world_size(self) -> int:
        return self.processes


@pytest.fixture
def host(pipeline: StableDiffusionPipeline, write_folder: Callable[..., Path], tmp_path: Path) -> Ranks:
    data = TextImageDataModule(str(write_folder(30)), resolution=8, batch_size=1, heldout_fraction=0.3)

    def tokens(captions: Sequence[str]) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[len(text) % 16, sum(map(ord, text)) % 16] for text in captions])}

    data.build(tokens)
    return Ranks(Module(pipeline.unet), data=data, folder=tmp_path)


def measured(host: Ranks, folder: Path, *, cached_only: bool = False) -> ReferenceProfile:
    probe = DenoiserProbe(host.module.unet).attach()
    profile = ReferenceProfile(folder, [DenoisingLoss()], ["denoising_loss"], timesteps=(100, 700), draws=1)
    try:
        profile.name_after(host.module.unet, host.module)
        measure_profile(host, profile=profile, probe=probe, cached_only=cached_only)
    finally:
        probe.detach()
    return profile


def everything(host: Ranks, profile: ReferenceProfile) -> Tensor:
    data = host.data
    keys = [sample.key for part in (data.train_dataset, data.heldout_dataset) for sample in part.samples]
    return torch.stack([profile.lookup(keys, [timestep] * len(keys)) for timestep in (100.0, 700.0)])


def name_them(monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str] = str) -> list[str]:
    """Let the data name what samples hold; keys of samples that are read from then on."""
    read: list[str] = []
    get = CaptionedImages.__getitem__

    def noted(self: CaptionedImages, index: Any) -> dict[str, Any]:
        item = get(self, index)
        read.append(item["key"])
        return item

    def contents(self: CaptionedImages) -> list[str]:
        return [change(f"content of {sample.key}") for sample in self.samples]

    monkeypatch.setattr(CaptionedImages, "__getitem__", noted)
    monkeypatch.setattr(CaptionedImages, "contents", property(contents), raising=False)
    return read


def test_values_are_those_of_a_profile_that_reads_everything(
    host: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = everything(host, measured(host, tmp_path / "read"))
    read = name_them(monkeypatch)
    found = measured(host, tmp_path / "named")
    assert len(read) == len(set(read)) == 30
    assert torch.equal(everything(host, found), expected)
    read.clear()
    for cached_only in (False, True):
        again = measured(host, tmp_path / "named", cached_only=cached_only)
        assert torch.equal(everything(host, again), expected)
    assert not read, "a requeue, or a second run, reads nothing"


def test_only_what_goes_by_another_name_is_read_and_nothing_is_measured_again(
    host: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_them(monkeypatch)
    measured(host, tmp_path / "named")
    changed = [host.data.train_dataset.samples[row].key for row in (3, 5)]
    read = name_them(monkeypatch, lambda name: f"{name} anew" if name.removeprefix("content of ") in changed else name)
    monkeypatch.setattr(Module, "sample_loss", lambda *given: pytest.fail("nothing is measured again"))
    measured(host, tmp_path / "named", cached_only=True)
    assert sorted(set(read)) == sorted(changed), "they are known by what their batches hold"


def test_a_profile_is_found_where_the_data_do_not_name_their_samples_any_more(
    host: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        name_them(patch)
        expected = everything(host, measured(host, tmp_path / "kept"))
    monkeypatch.setattr(CaptionedImages, "contents", None)
    monkeypatch.setattr(Module, "sample_loss", lambda *given: pytest.fail("nothing is measured again"))
    assert torch.equal(everything(host, measured(host, tmp_path / "kept", cached_only=True)), expected)


def test_samples_without_tokens_are_measured_under_the_name_that_the_data_give_them(
    host: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is in their batches they could not be told."""
    name_them(monkeypatch)
    get, loss = CaptionedImages.__getitem__, Module.sample_loss

    def bare(self: CaptionedImages, index: Any) -> dict[str, Any]:
        return {name: value for name, value in get(self, index).items() if name != "input_ids"}

    def plain(self: Module, batch: dict[str, Any], *given: Any) -> Tensor:
        assert "input_ids" not in batch
        return loss(self, {**batch, "input_ids": torch.zeros(len(batch["key"]), 2, dtype=torch.int64)}, *given)

    monkeypatch.setattr(CaptionedImages, "__getitem__", bare)
    monkeypatch.setattr(Module, "sample_loss", plain)
    assert everything(host, measured(host, tmp_path / "bare")).shape[1] == 30
    measured(host, tmp_path / "bare", cached_only=True)


def test_what_nobody_measured_is_refused_where_the_model_is_another(
    host: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_them(monkeypatch)
    with pytest.raises(RecordError, match="lacks samples of this data"):
        measured(host, tmp_path / "named", cached_only=True)


def test_processes_read_and_measure_a_part_each(host: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = everything(host, measured(host, tmp_path / "read"))
    read = name_them(monkeypatch)
    host.processes = 2
    parts = []
    for host.number in (1, 0):
        # What one lacks that the other would have measured meanwhile is no matter here.
        with monkeypatch.context() as patch:
            patch.setattr(ReferenceProfile, "lacking", lambda self, contents: list(range(len(contents))))
            patch.setattr(ReferenceProfile, "load", lambda self: None)
            measured(host, tmp_path / "named")
        parts.append(set(read))
        read.clear()
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 30
    host.processes, host.number = 1, 0
    assert torch.equal(everything(host, measured(host, tmp_path / "named")), expected)
    assert not read


def test_a_sample_that_cannot_be_read_leaves_the_profile(
    host: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name_them(monkeypatch)
    keys = [sample.key for sample in host.data.train_dataset.samples]
    get = CaptionedImages.__getitem__
    monkeypatch.setattr(CaptionedImages, "__getitem__", lambda self, row: get(self, 1 if row == 0 else row))
    profile = measured(host, tmp_path / "named")
    assert keys[0] not in profile and keys[1] in profile
    assert f"2 samples could not be measured under the base model, first '{keys[0]}'" in caplog.text
