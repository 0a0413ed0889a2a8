"""Fidelity: retrieval against losses computed one by one, CLIP against transformers' own preprocessing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation import fidelity
from memtrain.evaluation.fidelity import clip_similarity, retrieved
from memtrain.evaluation.heldout_loss import heldout_loss

PROMPTS = ["a", "dog", "fish and cat"]


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_an_image_is_retrieved_if_its_prompt_has_the_lowest_loss(pipeline: StableDiffusionPipeline) -> None:
    images = random_images(3, 2, 3, 16, 16)
    found = retrieved(pipeline, images, PROMPTS, others=2, timesteps=2, batch_size=6)
    # Prompts differ in the first column alone, so the losses under all three are those of one pass each.
    under = {
        prompt: heldout_loss(pipeline, images.flatten(0, 1), captions=[prompt] * 6, timesteps=2, batch_size=6)
        for prompt in PROMPTS
    }
    losses = torch.stack(list(under.values()), dim=1).view(3, 2, 3)
    expected = torch.stack([losses[row].argmin(dim=1) == row for row in range(3)])
    assert found.dtype == torch.bool and torch.equal(found, expected)
    assert found.any() and not found.all()


def test_prompts_with_the_same_text_are_no_competitors(
    pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def loss(judge: object, images: Tensor, *, captions: list[str], **options: object) -> Tensor:
        asked.append(captions)
        return torch.tensor([0.1 if caption == "a" else 0.2 for caption in captions])

    monkeypatch.setattr(fidelity, "heldout_loss", loss)
    found = retrieved(pipeline, random_images(3, 1, 3, 16, 16), ["a", "a", "b"], others=1)
    assert asked == [["a", "a", "b"], ["b", "b", "a"]]
    assert found.flatten().tolist() == [True, True, False]


def test_too_few_prompts(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(DataError, match=r"2 different prompt\(s\), 2 others"):
        retrieved(pipeline, random_images(3, 1, 3, 16, 16), ["a", "a", "b"], others=2)


@pytest.fixture(scope="module")
def clip_folder(pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {name: getattr(pipeline.tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(vocab_size=len(pipeline.tokenizer), max_position_embeddings=12, **small, **ids)
    vision = CLIPVisionConfig(image_size=20, patch_size=5, **small)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).save_pretrained(folder)
    pipeline.tokenizer.save_pretrained(folder)
    return folder


def test_clip_similarity_is_the_cosine_of_the_models_own_output(
    pipeline: StableDiffusionPipeline, clip_folder: Path
) -> None:
    images = random_images(3, 2, 3, 20, 20)
    found = clip_similarity(clip_folder, images, PROMPTS, batch_size=4)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (fidelity.CLIP_MEAN, fidelity.CLIP_DEVIATION))
    pixels = (images.flatten(0, 1) / 255 - mean) / deviation
    tokens = pipeline.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=pixels, **tokens)
    cosine = output.logits_per_image / model.logit_scale.exp()
    expected = torch.stack([cosine[2 * row : 2 * row + 2, row] for row in range(3)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_images_are_prepared_as_clip_wants_them() -> None:
    image = random_images(1, 3, 50, 30)
    prepared = fidelity._prepare(image, 20)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((20, 33), Image.Resampling.BICUBIC)
    pixels = torch.tensor(list(picture.crop((0, 6, 20, 26)).get_flattened_data())).view(20, 20, 3).permute(2, 0, 1)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (fidelity.CLIP_MEAN, fidelity.CLIP_DEVIATION))
    # Pillow rounds to whole numbers between its two passes.
    difference = (prepared[0] - (pixels / 255 - mean) / deviation).abs()
    assert difference.mean() < 0.01 and difference.max() < 0.2


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be loaded as a CLIP model"):
        clip_similarity(tmp_path, random_images(1, 1, 3, 16, 16), ["a"])
