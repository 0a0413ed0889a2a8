"""Fidelity: retrieval against losses computed one by one, CLIP against the model's own output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from memtrain.errors import DataError
from memtrain.evaluation.measures import fidelity
from memtrain.evaluation.measures.clip_scores import MEAN, STD, ClipFeatures
from memtrain.evaluation.measures.fidelity import clip_similarity, retrieved
from memtrain.evaluation.measures.heldout_loss import heldout_loss

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


def test_clip_similarity_is_the_cosine_of_the_models_own_output(clip_folder: Path) -> None:
    images, clip = random_images(3, 2, 3, 8, 8), ClipFeatures(clip_folder)
    found = clip_similarity(clip, images, PROMPTS)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), CLIPTokenizer.from_pretrained(clip_folder)
    pixels = (images.flatten(0, 1) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    tokens = tokenizer(PROMPTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        output = model(input_ids=tokens["input_ids"], pixel_values=pixels)
    cosine = output.logits_per_image / model.logit_scale.exp()
    expected = torch.stack([cosine[2 * row : 2 * row + 2, row] for row in range(3)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
