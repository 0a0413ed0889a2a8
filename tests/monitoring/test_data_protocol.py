"""Data modules that offer less than ours, or something else under the same name, are watched; what lacks is named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.errors import ConfigurationError
from memtrain.monitoring.data_protocol import by_key, known_samples
from memtrain.records import read_table
from tests.callbacks.test_monitor import Foreign, batches, fit

TORCHVISION = SimpleNamespace(samples=[("dog/1.png", 0), ("cat/2.png", 1)])
KNOWN = SimpleNamespace(samples=[SimpleNamespace(key=key, caption=f"a {key}") for key in "abcd"])


class Data(LightningDataModule):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.__dict__.update(attributes)

    def train_dataloader(self) -> DataLoader[Any]:
        return batches()


class Measurable(Foreign):
    def sample_loss(self, batch: Any, timesteps: Any, generator: Any) -> Any:
        raise AssertionError("nothing is measured before everything was checked")


@pytest.mark.parametrize("reference", [False, "paired"])
@pytest.mark.parametrize(
    "dataset", [batches().dataset, TORCHVISION, SimpleNamespace(samples="abcd"), SimpleNamespace(samples=7)], ids=str
)
def test_a_dataset_of_ones_own_is_no_obstacle(
    pipeline: StableDiffusionPipeline, tmp_path: Path, dataset: Any, reference: Any
) -> None:
    data = Data(train_dataset=dataset, heldout_dataset=dataset, groups=["a"], visits_per_epoch=3)
    callbacks = [MemorizationMonitor(reference=reference), SampleSkipping()]
    fit(Measurable(pipeline.unet), tmp_path, callbacks, data=data, max_epochs=1)
    assert not (tmp_path / "records" / "samples.parquet").exists()
    evidence = read_table(tmp_path / "records", "evidence")
    assert set(evidence["key"].to_pylist()) == set("abcd")
    for name in ("caption", "group"):
        assert set(evidence[name].to_pylist()) <= {None, ""}


def test_samples_without_visits_or_held_out_ones_are_recorded(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    fit(
        Foreign(pipeline.unet),
        tmp_path,
        [MemorizationMonitor(reference=False)],
        data=Data(train_dataset=KNOWN),
        max_epochs=1,
    )
    rows = read_table(tmp_path / "records", "samples").to_pylist()
    assert [(row["key"], row["caption"], row["split"]) for row in rows] == [(k, f"a {k}", "train") for k in "abcd"]
    assert {row["visits_per_epoch"] for row in rows} == {None}


@pytest.mark.parametrize(
    ("module", "data", "missing"),
    [
        (
            Foreign,
            None,
            r": Foreign.sample_loss\(batch, timesteps, generator\), one validation loader with a map-style dataset\n",
        ),
        (Measurable, Data(train_dataset=KNOWN), r": Data.heldout_dataset, Data.unique_dataloader\(dataset\)\n"),
        (
            Measurable,
            Data(train_dataset=KNOWN, heldout_dataset=TORCHVISION, unique_dataloader=list),
            r": Data.heldout_dataset.unique\(\)\n",
        ),
    ],
)
def test_what_lacks_for_measuring_is_named(
    pipeline: StableDiffusionPipeline, tmp_path: Path, module: Any, data: Any, missing: str
) -> None:
    with pytest.raises(ConfigurationError, match=missing):
        fit(module(pipeline.unet), tmp_path, [MemorizationMonitor()], data=data)


def test_only_what_has_the_form_is_known() -> None:
    mixed = SimpleNamespace(samples=[*KNOWN.samples, SimpleNamespace(key="e", caption=None)])
    for data in (None, Data(), Data(train_dataset=None), Data(train_dataset=TORCHVISION), Data(train_dataset=mixed)):
        assert list(known_samples(data, "train")) == []
    assert [sample.key for sample in known_samples(Data(heldout_dataset=KNOWN), "heldout")] == list("abcd")
    assert by_key(Data(groups={"a": "planted"}), "groups") == {"a": "planted"}
    assert by_key(Data(groups=["a"]), "groups") == by_key(None, "groups") == {}
