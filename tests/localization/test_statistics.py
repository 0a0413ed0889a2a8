"""Activation statistics: the definition, streaming, files and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.localization.predictor import Predictor
from memtrain.localization.statistics import ActivationStatistics, word_prompts

PROMPTS = ["a cat", "b", "dog on a hill", "c d e", "f"]


def test_they_are_mean_and_unbiased_deviation_of_the_mean_magnitude(pipeline: StableDiffusionPipeline) -> None:
    predictor = Predictor.of(pipeline)
    measured = ActivationStatistics.measure(predictor, iter(PROMPTS), batch_size=2)
    tokens = pipeline.tokenizer(PROMPTS, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    with torch.no_grad():
        text = pipeline.text_encoder(tokens.input_ids)[0]
        for site, attention in predictor.sites().items():
            activation = attention.to_v(text).abs().mean(dim=1)
            torch.testing.assert_close(measured.mean[site], activation.mean(dim=0))
            torch.testing.assert_close(measured.std[site], activation.std(dim=0))
    assert measured.count == 5
    assert list(measured.mean) == [name for name in predictor.sites() if not name.startswith("up")]


def test_reading_activations_in_a_forward_pass_gives_the_same(pipeline: StableDiffusionPipeline) -> None:
    class Indirect(Predictor):
        def _plain(self, sites: object) -> bool:
            return False

    direct = Predictor.of(pipeline)
    indirect = Indirect(**{name: getattr(direct, name) for name in direct.__dataclass_fields__})
    expected = direct.activations(PROMPTS, direct.sites("*"))
    found: dict[str, Tensor] = indirect.activations(PROMPTS, direct.sites("*"))
    assert list(found) == list(expected)
    for site, values in expected.items():
        torch.testing.assert_close(found[site], values)


def test_a_file_gives_back_what_was_measured(
    predictor: Predictor, statistics: ActivationStatistics, tmp_path: Path
) -> None:
    named = replace(statistics, source="captions")
    named.save(tmp_path / "a" / "s.safetensors")
    loaded = ActivationStatistics.load(tmp_path / "a" / "s.safetensors")
    for site in statistics.mean:
        assert torch.equal(loaded.mean[site], statistics.mean[site])
        assert torch.equal(loaded.std[site], statistics.std[site])
    assert (loaded.count, loaded.model, loaded.source) == (40, "planted", "captions")
    assert loaded.fingerprint == predictor.fingerprint(predictor.sites()) != ""
    with safe_open(tmp_path / "a" / "s.safetensors", "pt") as file:
        assert '"count": 40' in file.metadata()["origin"]
    (tmp_path / "b").write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match="no activation statistics"):
        ActivationStatistics.load(tmp_path / "b")


def test_statistics_of_other_layers_are_refused(predictor: Predictor, statistics: ActivationStatistics) -> None:
    widths = predictor.widths(predictor.sites())
    statistics.check(widths)
    first = next(iter(widths))
    with pytest.raises(ConfigurationError, match="9 neurons"):
        statistics.check({**widths, first: 9})
    with pytest.raises(ConfigurationError, match="have no such layer"):
        statistics.check({"elsewhere": 8})
    with pytest.raises(ConfigurationError, match="1 prompts"):
        ActivationStatistics.measure(predictor, ["one"])


def test_word_prompts_are_words_of_the_vocabulary(pipeline: StableDiffusionPipeline) -> None:
    prompts = word_prompts(pipeline.tokenizer, 50)
    assert prompts == word_prompts(pipeline.tokenizer, 50) != word_prompts(pipeline.tokenizer, 50, seed=1)
    assert {3, 12} <= {len(prompt.split()) for prompt in prompts} <= set(range(3, 13))
    assert {word for prompt in prompts for word in prompt.split()} <= set("abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_prompt_and_one_have_no_deviation_and_two_do(predictor: Predictor, count: int) -> None:
    if count < 2:
        with pytest.raises(ConfigurationError, match=f"{count} prompts are too few"):
            ActivationStatistics.measure(predictor, PROMPTS[:count])
    else:
        measured = ActivationStatistics.measure(predictor, PROMPTS[:count], batch_size=1)
        assert measured.count == 2
        assert all(std.isfinite().all() for std in measured.std.values())
