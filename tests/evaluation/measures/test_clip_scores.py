"""A random CLIP from a folder: what it is given, and what comes back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.measures.clip_scores import MEAN, STD, ClipFeatures

RANDOM = torch.Generator().manual_seed(0)


def test_embeddings_are_those_of_the_model(clip_folder: Path) -> None:
    clip, model = ClipFeatures(clip_folder), CLIPModel.from_pretrained(clip_folder).eval()
    images = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8, generator=RANDOM)
    pixels = (images.flatten(0, 1) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(["a b", "c"], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = model(input_ids=tokens["input_ids"], pixel_values=pixels)
    torch.testing.assert_close(clip.images(images, batch_size=4).flatten(0, 1), expected.image_embeds)
    torch.testing.assert_close(clip.texts(["a b", "c"]), expected.text_embeds)
    raw = clip.images(images, unit=False)
    assert raw.shape == (2, 3, 16)
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=-1), clip.images(images))
    assert not torch.allclose(raw.norm(dim=-1), torch.ones(2, 3), atol=1e-3)


def test_other_sizes_are_resized_and_cropped(clip_folder: Path) -> None:
    clip = ClipFeatures(clip_folder)
    image = torch.zeros(1, 3, 16, 32, dtype=torch.uint8)
    image[..., :8] = image[..., 24:] = 255
    black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    # Pillow's bicubic reads two pixels beyond the border of the crop, so columns of the middle are compared.
    assert torch.equal(clip._pixels(image)[..., 2:6], clip._pixels(black)[..., 2:6])
    assert clip.name == "CLIP patch 4, width 16, 8 px"


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no CLIP model"):
        ClipFeatures(tmp_path)


def test_weights_that_are_cut_off_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match="holds no CLIP model"):
        ClipFeatures(tmp_path / "clip")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_image_or_prompt_one_and_two_are_embedded(clip_folder: Path, count: int) -> None:
    clip, images = ClipFeatures(clip_folder), torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    if not count:
        with pytest.raises(DataError, match="no images to embed"):
            clip.images(images)
        with pytest.raises(DataError, match="no prompts to embed"):
            clip.texts([])
    else:
        assert clip.images(images).shape == clip.texts(["a"] * count).shape == (count, 16)
