"""What located neurons are compared with."""

from __future__ import annotations

import pytest

from memtrain.errors import ConfigurationError
from memtrain.localization.baselines import frequent, frequent_sets, most_active, random_neurons, unrefined
from memtrain.localization.found import Found
from memtrain.localization.predictor import Predictor
from memtrain.models.neuron_mask import NeuronMask


def test_random_neurons_are_as_many_in_the_same_layers() -> None:
    mask = NeuronMask({"a": [1, 2, 3], "b": [0]}, factor=0.5)
    drawn = random_neurons(mask, {"a": 1000, "b": 1000, "c": 10}, seed=0, key="x")
    assert {site: len(chosen) for site, chosen in drawn.channels.items()} == {"a": 3, "b": 1}
    assert drawn.factor == 0.5
    assert random_neurons(mask, {"b": 1000, "a": 1000}, seed=0, key="x").channels == drawn.channels
    assert random_neurons(mask, {"a": 1000, "b": 1000}, seed=0, key="y").channels != drawn.channels
    with pytest.raises(ConfigurationError, match="'b'"):
        random_neurons(mask, {"a": 1000}, seed=0, key="x")


def test_the_most_active_are_those_with_the_highest_activation(predictor: Predictor) -> None:
    sites = predictor.sites()
    mask = most_active(predictor, "memorized 1", k=2)
    for site, values in predictor.activations(["memorized 1"], sites).items():
        least = min(float(values[0, neuron]) for neuron in mask.channels[site])
        assert int((values[0] > least).sum()) == 1
    assert len(most_active(predictor, "memorized 1", k=999)) == sum(predictor.widths(sites).values())


def test_an_unrefined_selection_counts_each_neuron_once() -> None:
    found = Found(
        prompt="x",
        similarity=1.0,
        kept_seeds=2,
        calls=1,
        images=4,
        seconds=0.1,
        initial=((3, 1, 3), ()),
        refined=((), ()),
    )
    mask = unrefined(found, ["a", "b"])
    assert mask is not None and mask.channels == {"a": [1, 3]}
    assert unrefined(Found(prompt="x", similarity=0.1, kept_seeds=0, calls=1, images=4, seconds=0.1), ["a"]) is None


def of(*layers: tuple[int, ...]) -> Found:
    return Found(prompt="p", similarity=0.9, kept_seeds=1, calls=1, images=1, seconds=0.0, refined=layers)


def test_the_most_frequent_neurons_are_counted_over_prompts() -> None:
    found, sites = [of((1, 2), (7,)), of((2,), (7, 8)), of((2, 2), ()), of((), (8,))], ["a", "b"]
    # 2 of a: three prompts, each once; 7 and 8 of b: two; 1 of a: one.
    assert frequent(found, sites, k=1).channels == {"a": [2]}
    assert frequent(found, sites, k=3, factor=0.5).channels == {"a": [2], "b": [7, 8]}
    assert frequent(found, sites, k=1, per_layer=True).channels == {"a": [2], "b": [7]}
    assert frequent([], sites, k=1) is None and frequent(found, sites, k=1, initial=True) is None


def test_the_most_frequent_sets_are_those_that_prompts_share_to_the_last_neuron() -> None:
    found, sites = [of((1, 2), ()), of((3,), (4,)), of((2, 1, 1), ()), of((), ())], ["a", "b"]
    assert frequent_sets(found, sites, k=1).channels == {"a": [1, 2]}
    assert frequent_sets(found, sites, k=2).channels == {"a": [1, 2, 3], "b": [4]}
    assert frequent_sets(found[3:], sites, k=2) is None
