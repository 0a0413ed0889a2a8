"""DINO and CLIP from a folder, small and random."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

from memtrain.errors import ConfigurationError
from memtrain.families.descriptors.base import IMAGENET, normalised, stacked
from memtrain.families.descriptors.vision_transformer import CLIP_PIXELS, VisionTransformer

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
IMAGES = [Image.new("RGB", (8, 8), (250, 20, 90)), Image.linear_gradient("L")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(ViTConfig(**SMALL)).save_pretrained(root / "dino")
        CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL, projection_dim=6)).save_pretrained(root / "clip")
    return {"dino": root / "dino", "clip": root / "clip"}


def test_dino_gives_its_class_token(folders: dict[str, Path]) -> None:
    found = VisionTransformer(str(folders["dino"])).describe(IMAGES)
    with torch.no_grad():
        pixels = normalised(stacked(IMAGES, side=8), *IMAGENET)
        expected = ViTModel.from_pretrained(folders["dino"]).eval()(pixel_values=pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(found, torch.nn.functional.normalize(expected, dim=1), atol=1e-5)


def test_clip_gives_its_image_embedding(folders: dict[str, Path]) -> None:
    found = VisionTransformer(str(folders["clip"])).describe(IMAGES)
    with torch.no_grad():
        pixels = normalised(stacked(IMAGES, side=8), *CLIP_PIXELS)
        model = CLIPVisionModelWithProjection.from_pretrained(folders["clip"]).eval()
        expected = model(pixel_values=pixels).image_embeds
    assert found.shape == (2, 6)
    np.testing.assert_allclose(found, torch.nn.functional.normalize(expected, dim=1), atol=1e-5)


def test_the_folder_says_how_pixels_are_normalised(folders: dict[str, Path]) -> None:
    plain = VisionTransformer(str(folders["dino"])).describe(IMAGES)
    file = folders["dino"] / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}))
    try:
        assert not np.allclose(VisionTransformer(str(folders["dino"])).describe(IMAGES), plain, atol=1e-3)
    finally:
        file.unlink()


def test_versions_differ_by_weights(folders: dict[str, Path]) -> None:
    assert VisionTransformer(str(folders["dino"])).version != VisionTransformer(str(folders["clip"])).version


def test_pickled_weights_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds nothing"):
        VisionTransformer(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ConfigurationError, match="safetensors"):
        VisionTransformer(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    for spoilt, said in (
        ('{"model_type": ', "is not JSON"),
        ("[]", "not hold a JSON object"),
        ('{"image_size": []}', "image_size"),
    ):
        (tmp_path / "config.json").write_text(spoilt)
        with pytest.raises(ConfigurationError, match=said):
            VisionTransformer(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        VisionTransformer(str(tmp_path))
