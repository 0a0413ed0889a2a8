"""Neurons by contribution: the score in closed form, the share, and who gets a mask."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.errors import ConfigurationError
from memtrain.localization.contribution import contributions, locate_contributions, top_share
from memtrain.localization.predictor import Predictor

OTHERS = ["c d", "e", "f g h"]


def test_the_score_is_the_difference_from_others_times_the_weight_it_is_read_with(
    pipeline: StableDiffusionPipeline,
) -> None:
    predictor = Predictor.of(pipeline)
    sites = predictor.sites("*")
    found = contributions(predictor, ["a", "b c"], sites=sites, other_prompts=OTHERS)
    text, others = predictor.encode(["a", "b c"]), predictor.encode(OTHERS)
    assert [tuple(layer.shape) for layer in found] == [(2, 16)] * 4
    for layer, site in zip(found, sites.values(), strict=True):
        for neuron in (0, 7):
            value = site.to_v.weight[neuron]
            difference = (text @ value - (others @ value).mean(dim=0)).abs().mean(dim=1)
            expected = difference * site.to_out[0].weight[:, neuron].norm()
            torch.testing.assert_close(layer[:, neuron], expected.detach(), rtol=1e-4, atol=1e-6)


def test_the_highest_of_all_layers_together_are_taken() -> None:
    scores = [torch.tensor([5.0, 1.0, 3.0]), torch.tensor([0.5, 4.0])]
    assert top_share(scores, 0.6) == ((0, 2), (1,))
    assert top_share(scores, 0.01) == ((0,), ())


def test_prompts_above_the_threshold_get_a_mask_of_the_share(pipeline: StableDiffusionPipeline) -> None:
    every = locate_contributions(pipeline, ["a", "b c", "a"], other_prompts=OTHERS, share=0.25, threshold=-1.0)
    assert list(every) == ["a", "b c"]
    assert [len(mask) for mask in every.values()] == [16, 16], "a quarter of 64"
    assert every["a"].channels != every["b c"].channels
    assert every.table["memorized"].to_pylist() == [True, True]
    assert not locate_contributions(pipeline, ["a"], other_prompts=OTHERS, threshold=2.0)
    calibrated = locate_contributions(pipeline, ["a"], other_prompts=OTHERS)
    assert -1 < calibrated.search["threshold"] < 2


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"other_prompts": ["x"]}])
def test_what_cannot_be_searched_is_refused(pipeline: StableDiffusionPipeline, wrong: dict) -> None:
    with pytest.raises(ConfigurationError, match="share="):
        locate_contributions(pipeline, ["a"], **{"other_prompts": OTHERS, **wrong})
