"""The benchmark of neuron masking: what it measures of a set of masks, and how runs are pooled."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.localization.found import Found
from memtrain.localization.results import Localization
from memtrain.localization.retrigger import retrigger
from memtrain.models.neuron_mask import NeuronMask
from tests.conftest import ROOT

SITE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def found(prompt: str, **neurons: tuple[int, ...]) -> Found:
    lists = {name: (chosen,) for name, chosen in neurons.items()}
    return Found(prompt=prompt, similarity=0.5, kept_seeds=len(lists), calls=1, images=1, seconds=0.0, **lists)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("neuron_masking")
    monkeypatch.setattr(module, "SAMPLING", replace(module.SAMPLING, steps=2))
    return module


@pytest.fixture
def case(script: ModuleType, pipeline: StableDiffusionPipeline) -> Any:
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    controls = ["c", "d e", "f", "g h", "i", "j k"]
    nemo = Localization(
        (found("a", initial=(1, 2, 5, 7), refined=(1, 2, 5)), found("b")), (SITE,), {"settings": {"factor": 0.0}}
    )
    return script.Case(pipeline, ["a", "b"], controls, images, threshold=float("inf"), nemo=nemo)


def test_random_masks_have_nemos_size_and_other_neurons(case: Any) -> None:
    first, second = case.as_many_at_random()
    assert second is None
    assert set(first.channels) == {SITE}
    assert len(first) == 3


def test_other_sets_of_neurons(script: ModuleType, case: Any) -> None:
    top = case.most_unusual(4)
    assert [len(mask) for mask in top] == [16, 16], "of one layer down, one in the middle and two up"
    assert [len(mask) for mask in case.every_neuron("down")] == [16, 16]
    assert next(iter(case.every_neuron("mid up")[0].channels)).startswith("mid")
    assert [len(mask) for mask in case.most_active(5)] == [10, 10], "of a layer down and one in the middle"
    assert [mask and mask.channels for mask in case.without_refinement()] == [{SITE: [1, 2, 5, 7]}, None]
    masks = script.VARIANTS["NeMo"](case)
    assert [None if mask is None else len(mask) for mask in masks] == [3, None]


def test_a_set_of_masks_is_measured_one_by_one_and_together(script: ModuleType, case: Any) -> None:
    mask = NeuronMask({SITE: [0, 1]}, factor=-3.0)
    found = script.measure(case, [mask, None])
    assert found["neurons"] == [2, 0]
    assert found["together"] == 2
    assert found["masked"]["n"] == found["masked"]["reproduced"] == 2, "below any threshold"
    assert found["heldout_loss"]["n"] == 6
    assert found["heldout_loss"]["change"] != 0
    assert "heldout_loss" not in script.measure(case, [None, None])


def test_the_search_runs_under_the_masks(script: ModuleType, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def search(*arguments: Any, masks: Any) -> Any:
        seen.append(masks)
        return retrigger(*arguments, masks=masks, steps=2)

    monkeypatch.setattr(script, "retrigger", search)
    masks = [NeuronMask({SITE: [0]}), None]
    found = script.search(case, masks)
    assert seen == [masks]
    assert (found["reproduced"], found["n"], len(found["losses"])) == (2, 2, 2)


def test_runs_are_pooled(script: ModuleType) -> None:
    def one(neurons: list[int], k: int) -> dict[str, Any]:
        share = {"reproduced": k, "n": 10, "ratio": 0.5}
        loss = {"change": 0.01 * k}
        return {"neurons": neurons, "together": sum(neurons), "masked": share, "all masks": share, "heldout_loss": loss}

    content = {"x": {"variants": {"NeMo": one([1, 2, 9], 3)}}, "y": {"variants": {"NeMo": one([4, 5], 4)}}}
    (line,) = script.rows(content)
    assert line["per prompt"] == "4"
    assert line["reproduced, masked"] == "7 of 20"
    assert line["together"] == "12, 9"
    assert line["held-out loss"] == "+3.0%, +4.0%"
    assert line["runs"] == "2"
