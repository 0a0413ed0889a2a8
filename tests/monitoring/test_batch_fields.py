"""Names of samples in the batches that people have."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import BatchEncoding

from memtrain.callbacks.caption_augmentation import CaptionAugmentation
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.errors import ConfigurationError, DataError
from memtrain.monitoring.batch_fields import ALL_DIFFERENT, BatchNames, caption_dropped, described_length, sample_keys
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from tests.callbacks.test_monitor import Foreign, fit


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        ([3, 7], ["3", "7"]),
        (torch.tensor([3, 7]), ["3", "7"]),
        ([torch.tensor(3), torch.tensor(7)], ["3", "7"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [dict, UserDict, BatchEncoding])
def test_keys_are_strings_or_whole_numbers_in_any_mapping(keys: Any, expected: list[str], kind: Any) -> None:
    assert sample_keys(kind({"name": keys}), "name") == expected
    assert BatchNames("name")(kind({"name": keys, "key": ["x", "y"]})) == expected


def test_rows_of_token_ids_are_names() -> None:
    first, second, third = sample_keys({"text": torch.tensor([[1, 2], [1, 3], [1, 2]])}, "text")
    assert first == third != second


@pytest.mark.parametrize(
    "keys", [[0.5, 1.5], torch.tensor([0.5, 1.5]), torch.tensor([True]), "ab", 3, [None, None], [True], torch.tensor(3)]
)
def test_other_things_are_no_keys(keys: Any) -> None:
    with pytest.raises(DataError, match=r"'key' is|found"):
        sample_keys({"key": keys}, "key")


def test_a_field_that_was_asked_for_has_to_be_there() -> None:
    for batch in ({"key": ["a"], "latents": torch.zeros(1, 4, 8, 8)}, (torch.zeros(1, 4, 8, 8),)):
        with pytest.raises(DataError, match="under 'name'"):
            BatchNames("name")(batch)


IMAGES = torch.arange(3 * 4 * 2 * 2.0).view(3, 4, 2, 2)
TEXT = torch.ones(3, 5, 16)


@pytest.mark.parametrize(
    ("batch", "field"),
    [
        ({"text": TEXT, "latents": IMAGES}, "latents"),
        ({"other": IMAGES + 1, "pixel_values": IMAGES}, "pixel_values"),
        ((TEXT, IMAGES), "field [1]"),
        ([IMAGES, torch.tensor([0, 1, 2])], "field [0]"),
        ([{"x": IMAGES}, TEXT], "field [0]['x']"),
        (IMAGES, "values"),
        ({"patches": IMAGES.flatten(2)}, "patches"),
        ({"image": (IMAGES).to(torch.uint8)}, "image"),
        ({"image": IMAGES.bfloat16()}, "image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_without_keys_the_image_names_the_sample(batch: Any, field: str, caplog: pytest.LogCaptureFixture) -> None:
    names = BatchNames()
    first = names(batch)
    assert len(set(first)) == 3
    assert names(batch) == first
    assert caplog.text.count("so a hash of its") == 1, "said once"
    assert field in caplog.text
    turned = BatchNames()(IMAGES.flip(0))
    assert field != "values" or turned == first[::-1]


def test_a_batch_without_any_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"nor images that could name samples: found \['caption', 'ids'\]"):
        BatchNames()({"ids": torch.tensor([1, 2]), "caption": ["a", "b"]})


def test_what_has_the_name_but_not_the_form_is_left_alone() -> None:
    assert described_length({"prompt_length": [1, 2]}, 2) is None
    assert described_length((1, 2), 2) is None
    assert described_length({"prompt_length": torch.tensor([1, 2])}, 2) is not None
    assert caption_dropped(["a"], (IMAGES,), without=()) == []


class Pairs(Foreign):
    """Batches are pairs of latents and text embeddings."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        latents, text = batch
        noise, timesteps = torch.randn(latents.shape), torch.randint(1000, (len(latents),))
        return F.mse_loss(self.unet(self.noise.add_noise(latents, noise, timesteps), timesteps, text).sample, noise)


class Images(Dataset[Any]):
    """Latents and text embeddings, perhaps flipped at random."""

    def __init__(self, count: int = 16, *, flipped: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(count, 4, 8, 8, generator=generator)
        self.text, self.flipped = torch.randn(count, 5, 16, generator=generator), flipped

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        latents = self.latents[index]
        return latents + (torch.rand(1) if self.flipped else 0), self.text[index]


def monitor() -> MemorizationMonitor:
    return MemorizationMonitor(reference=False, settings=WatchSettings(calibrate_every=2))


def test_pairs_are_watched(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    fit(Pairs(pipeline.unet), tmp_path, [monitor(), SampleSkipping()], data=DataLoader(Images(), batch_size=4))
    keys = read_steps(tmp_path / "records")["key"].to_pylist()
    assert len(set(keys)) == 16
    assert keys[:16] == keys[16:]


def test_pairs_cannot_be_changed(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="changes fields of the batch, but the batch is a list"):
        fit(
            Pairs(pipeline.unet),
            tmp_path,
            [monitor(), CaptionAugmentation("repeat")],
            data=DataLoader(Images(), batch_size=4),
        )


def test_images_that_change_at_random_name_nobody(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    """At once where the dataset can be asked twice, else when all of it has been seen."""
    module = Pairs(pipeline.unet)
    with pytest.raises(DataError, match="shows the same sample differently each time"):
        fit(module, tmp_path / "dataset", [monitor()], data=DataLoader(Images(flipped=True), batch_size=4))
    assert not module.gradients

    class OnTheDevice(Pairs):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] + torch.rand(1), batch[1]]

    module = OnTheDevice(pipeline.unet)
    with pytest.raises(DataError, match="100 of 100 visits after the first round of all data had new names"):
        fit(module, tmp_path / "batch", [monitor()], data=DataLoader(Images(), batch_size=4), max_epochs=20)


def test_asking_twice_does_not_disturb_the_hosts_random_numbers() -> None:
    names = BatchNames()
    names((IMAGES, TEXT))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with pytest.raises(DataError):
        names.require_same(Images(flipped=True))
    assert torch.rand(1) == expected


def test_data_of_unknown_length_are_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    names, known = BatchNames(), set[str]()
    names((IMAGES,))
    for index in range(ALL_DIFFERENT):
        names.watch([str(index)], known, round_over=None)
        known.add(str(index))
    assert caplog.text.count("No sample came up twice in 2000 visits") == 1
    names = BatchNames()
    names((IMAGES,))
    for index in range(2 * ALL_DIFFERENT):
        names.watch([str(index % 500)], known, round_over=None)
    assert caplog.text.count("No sample came up twice") == 1


class Stream(IterableDataset[Any]):
    """Cannot be asked for single samples."""

    def __iter__(self) -> Any:
        data = Images()
        return (data[index] for index in range(16))


def test_a_stream_is_named_by_its_images(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    trainer = Trainer(
        default_root_dir=tmp_path,
        callbacks=[monitor()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=2,
        limit_train_batches=4,
    )
    trainer.fit(Pairs(pipeline.unet), DataLoader(Stream(), batch_size=4))
    keys = read_steps(tmp_path / "records")["key"].to_pylist()
    assert keys[:16] == keys[16:]
