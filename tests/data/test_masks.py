"""Masks of the loss: found, cut like the image, and refused where they cannot be meant."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from memtrain.data.dataset import Visit
from memtrain.data.framing import Augment, Frame
from memtrain.data.masks import Masks, load_mask, masked
from memtrain.data.module import TextImageDataModule
from memtrain.data.source import open_source
from memtrain.errors import ConfigurationError, DataError


@pytest.fixture
def folder(tmp_path):
    """Images whose right half is masked in three ways, and one without a mask."""
    path = tmp_path / "photos"
    path.mkdir()
    for name in ("named.png", "beside.png", "clear.png", "whole.png"):
        Image.new("RGB", (32, 16), "red").save(path / name)
    half = Image.fromarray(np.repeat(np.repeat([[255, 0]], 16, axis=1), 16, axis=0).astype(np.uint8))
    half.save(path / "m.png")
    half.resize((64, 32), Image.Resampling.NEAREST).save(path / "beside.mask.png")
    image = Image.open(path / "clear.png").convert("RGBA")
    image.putalpha(half)
    image.save(path / "clear.png")
    rows = [{"file_name": name, "text": name} for name in ("named.png", "beside.png", "clear.png", "whole.png")]
    rows[0]["mask_file"] = "m.png"
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(("kind", "rows"), [("files", (0, 1)), ("alpha", (2,))])
def test_masks_are_cut_like_their_images(folder, kind, rows):
    source = open_source(str(folder))
    assert masked(source, kind) == len(rows)
    masks = Masks(source, kind, 4)
    for row in range(4):
        whole, centre = masks(row, Frame((16, 32))), masks(row, Frame((16, 16)))
        assert whole.shape == (1, 4, 8)
        assert centre.shape == (1, 4, 4)
        if row in rows:
            assert torch.equal(whole[0], torch.tensor([1.0] * 4 + [0.0] * 4).expand(4, 8))
            assert torch.equal(centre[0], torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(4, 4))
            assert torch.equal(masks(row, Frame((16, 32), flipped=True)), whole.flip(2))
            assert torch.equal(masks(row, Frame((16, 16), across=0.0)), torch.ones(1, 4, 4))
            assert torch.equal(masks(row, Frame((16, 16), across=1.0)), torch.zeros(1, 4, 4))
        else:
            assert torch.equal(whole, torch.ones(1, 4, 8))


def test_batches_carry_masks_at_the_size_of_latents(folder):
    data = TextImageDataModule(str(folder), resolution=16, heldout="edited", families="off")
    encoding = SimpleNamespace(encode_images=lambda pixels: pixels[:, :, ::2, ::2])
    data.build()
    assert "loss_mask" not in data.train_dataset[0]
    data._use_masks(encoding, torch.device("cpu"))
    for dataset in (data.train_dataset, data.train_dataset.unique(), data.heldout_dataset):
        assert dataset[0]["loss_mask"].shape == (1, 8, 8)
    assert data.train_dataset[0]["loss_mask"].mean() == 0.5
    assert data.train_dataset[3]["loss_mask"].mean() == 1
    batch = next(iter(data.train_dataloader()))
    assert batch["loss_mask"].shape == (4, 1, 8, 8)


def test_crops_take_their_masks_along(folder):
    augment = Augment(random_crop=True, random_flip=True)
    data = TextImageDataModule(str(folder), resolution=16, heldout="edited", families="off", augment=augment)
    data.build()
    data._use_masks(SimpleNamespace(encode_images=lambda pixels: pixels[:, :, ::2, ::2]), torch.device("cpu"))
    shares = {
        round(float(share), 2)
        for batch in (next(iter(data.train_dataloader())) for _ in range(1))
        for share in batch["loss_mask"].mean(dim=(1, 2, 3))
    }
    assert len(shares) > 1


def test_without_masks_there_is_no_field_and_nothing_is_asked_of_the_module(write_folder):
    data = TextImageDataModule(str(write_folder(4)), resolution=8, families="off")
    data.setup("fit")
    assert "loss_mask" not in data.train_dataset[0]


def test_what_cannot_be_meant_is_refused(folder):
    source = open_source(str(folder))
    Image.new("L", (32, 16)).save(folder / "m.png")
    with pytest.raises(DataError, match=r"'named\.png'[\s\S]*black everywhere"):
        load_mask(source, 0, "files")
    Image.new("L", (16, 16), 255).save(folder / "m.png")
    with pytest.raises(DataError, match="is 16 x 16, the image 32 x 16"):
        load_mask(source, 0, "files")
    (folder / "m.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        load_mask(source, 0, "files")


def test_settings_that_need_what_is_not_there_are_refused(folder, write_folder):
    data = TextImageDataModule(str(folder), resolution=16, families="off")
    with pytest.raises(ConfigurationError, match=r"2 image\(s\) have masks[\s\S]*masks to off"):
        data.setup("fit")
    data = TextImageDataModule(str(write_folder(4)), resolution=8, families="off", masks="alpha")
    with pytest.raises(ConfigurationError, match="no image has an alpha channel"):
        data.setup("fit")


@pytest.mark.parametrize("cached", [False, True])
def test_a_cut_that_shows_nothing_of_a_mask_gives_way_to_the_fixed_view(folder, cached):
    """A band in the middle counts, of which the crops near both ends show nothing."""
    band = np.zeros((16, 48), dtype=np.uint8)
    band[:, 22:26] = 255
    for name in ("named.png", "beside.png", "clear.png", "whole.png"):
        Image.new("RGB", (48, 16), "red").save(folder / name)
    for name in ("m.png", "beside.mask.png"):
        Image.fromarray(band).save(folder / name)
    augment = Augment(random_crop=True, variants=8 if cached else 0)
    data = TextImageDataModule(str(folder), resolution=16, heldout="edited", families="off", augment=augment)
    data.build()
    data._use_masks(SimpleNamespace(encode_images=lambda pixels: pixels[:, :, ::2, ::2]), torch.device("cpu"))
    dataset = data.train_dataset
    if cached:
        dataset.use(latents=lambda row, variant: {"latents": torch.tensor(variant)})
    (row,) = (row for row, sample in enumerate(dataset.samples) if sample.key == "named.png")
    items = [dataset[Visit(row, epoch)] for epoch in range(60)]
    left = [int(item["crop_top_left"][1]) for item in items]
    assert all(item["loss_mask"].any() for item in items)
    assert set(left) > {16}
    assert all(6 < place < 26 for place in left)
    if cached:
        assert {int(item["latents"]) for item, place in zip(items, left, strict=True) if place == 16} >= {0}
        assert len({(int(item["latents"]), place) for item, place in zip(items, left, strict=True)}) == len(
            {int(item["latents"]) for item in items}
        ), "latents and mask are of one variant"


def test_a_mask_that_the_fixed_view_cuts_off_is_refused_before_training(folder):
    edge = np.zeros((16, 32), dtype=np.uint8)
    edge[:, :4] = 255
    Image.fromarray(edge).save(folder / "m.png")
    data = TextImageDataModule(str(folder), resolution=16, heldout="edited", families="off")
    data.build()
    encoding = SimpleNamespace(encode_images=lambda pixels: pixels[:, :, ::2, ::2])
    with pytest.raises(DataError, match=r"are black in the center, first \['named.png'\]"):
        data._use_masks(encoding, torch.device("cpu"))
