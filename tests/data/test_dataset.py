"""Items, tokens, visits and cached latents."""

import pytest
import torch

from memtrain.data.dataset import CaptionedImages
from memtrain.data.one_shape import loader
from memtrain.data.source import open_source
from memtrain.data.token_table import tokens_by


@pytest.fixture
def source(write_folder):
    return open_source(str(write_folder({f"{index}.png": "word " * (index + 1) for index in range(6)})))


def test_batch_is_what_the_contract_says(source, tokenizer):
    dataset = CaptionedImages(source, [4, 0, 2], resolution=10, tokens=tokens_by(tokenizer))
    (batch,) = loader(dataset, batch_size=3)
    assert batch.keys() == {"key", "caption", "pixel_values", "input_ids", "prompt_length"}
    assert batch["key"] == ["4.png", "0.png", "2.png"]
    assert batch["caption"] == ["word word word word word", "word", "word word word"]
    assert batch["pixel_values"].shape == (3, 3, 10, 10)
    assert batch["pixel_values"].dtype == torch.float32
    assert torch.allclose(batch["pixel_values"][:, 0, 0, 0], torch.tensor([40.0, 0.0, 20.0]) / 127.5 - 1)
    assert batch["input_ids"].shape == (3, 6)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["prompt_length"].tolist() == [6, 3, 5]


def test_without_a_tokenizer_there_are_no_tokens(source):
    assert CaptionedImages(source, [0], resolution=8)[0].keys() == {"key", "caption", "pixel_values"}


def test_visits_repeat_samples_under_their_key(source):
    dataset = CaptionedImages(source, [0, 1, 2], resolution=8, visits=[1, 3, 2])
    assert [item["key"] for item in dataset] == ["0.png", "1.png", "1.png", "1.png", "2.png", "2.png"]
    assert len(dataset.unique()) == 3


def test_cached_latents_are_those_of_the_right_sample(source, tokenizer):
    dataset = CaptionedImages(source, [5, 1, 3], resolution=8, tokens=tokens_by(tokenizer), visits=[1, 2, 1])
    images = [dataset[position]["pixel_values"] for position in range(4)]
    sizes = []

    def encode(pixel_values):
        sizes.append(len(pixel_values))
        return pixel_values.double()[:, :, ::4, ::4]

    dataset.cache_latents(encode, batch_size=2)
    assert sizes == [2, 1]
    for item, image in zip(dataset, images, strict=True):
        assert "pixel_values" not in item
        assert item["latents"].dtype == torch.float32
        assert torch.equal(item["latents"], image[:, ::4, ::4])


def test_unique_shares_tokens_and_latents(source, tokenizer):
    dataset = CaptionedImages(source, [2, 0], resolution=8, tokens=tokens_by(tokenizer), visits=[5, 1])
    dataset.cache_latents(lambda pixel_values: pixel_values)
    item = dataset.unique()[1]
    assert item["key"] == "0.png"
    assert torch.equal(item["latents"], dataset.pixel_values(1))
    assert item["prompt_length"] == 3


def test_empty_selection(source, tokenizer):
    dataset = CaptionedImages(source, [], resolution=8, tokens=tokens_by(tokenizer))
    dataset.cache_latents(lambda pixel_values: pixel_values)
    assert len(dataset) == len(dataset.unique()) == 0


def test_every_field_of_the_tokens_is_a_field_of_the_items(source):
    def tokens(captions):
        return {
            "input_ids": torch.tensor([[len(text)] for text in captions]),
            "input_ids_2": torch.tensor([[len(text), 7] for text in captions]),
            "prompt_mask": torch.tensor([[True, len(text) > 5] for text in captions]),
        }

    dataset = CaptionedImages(source, [1, 0], resolution=8, tokens=tokens)
    assert dataset[1]["input_ids_2"].tolist() == [4, 7]
    assert [item["prompt_mask"].tolist() for item in dataset.unique()] == [[True, True], [True, False]]
    assert dataset.prompt_lengths is None
