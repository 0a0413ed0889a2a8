"""Which detectors run: named ones as they are, a suggested choice, or all that can."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace
from inspect import isabstract

import pytest
from diffusers import StableDiffusionPipeline

import memtrain.detectors
from memtrain.detectors.base import Detector
from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.tile_l2 import TileL2
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.chosen_detectors import chosen_detectors, every_detector, refuse_none, suggested_beside

SAMPLING = Sampling(seeds=(0, 1, 2), steps=4, progress=False)


def test_every_class_of_the_package_is_there() -> None:
    classes = set()
    for found in pkgutil.iter_modules(memtrain.detectors.__path__, memtrain.detectors.__name__ + "."):
        for kind in vars(importlib.import_module(found.name)).values():
            if isinstance(kind, type) and issubclass(kind, Detector) and not isabstract(kind):
                classes.add(kind)
    every = every_detector()
    assert {type(detector) for detector in every} == classes
    assert len({detector.name for detector in every}) == len(every)


def test_named_and_suggested_ones_run_as_they_are(pipeline: StableDiffusionPipeline) -> None:
    own: list[Detector] = [TileL2()]
    assert chosen_detectors(own, pipeline, SAMPLING) == (own, {})
    assert chosen_detectors("none", pipeline, SAMPLING) == ([], {})
    names = [detector.name for detector in chosen_detectors("suggested", pipeline, SAMPLING)[0]]
    assert names == ["guidance_norm_1", "memattn_e", "guidance_norm_all", "memattn_d", "noise_similarity"]
    alone = Sampling(seeds=(0,))
    beside = chosen_detectors("suggested", pipeline, alone, suggested=suggested_beside)[0]
    assert [detector.name for detector in beside] == ["guidance_norm_1", "memattn_e", "memattn_d"]


def test_of_all_those_that_cannot_are_named(pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    able, unable = chosen_detectors("all", pipeline, SAMPLING)
    assert not unable and len(able) == len(every_detector())
    able, unable = chosen_detectors("all", pipeline, replace(SAMPLING, guidance_scale=1.0))
    assert {"tile_l2_3", "noise_similarity"} <= {detector.name for detector in able}
    assert unable["guidance_norm_1"].startswith("guidance_norm_1 needs unconditional predictions")
    assert not set(unable) & {detector.name for detector in able}
    monkeypatch.setattr(GuidanceNorm, "needs", frozenset({"second sight"}))
    assert "second sight" in chosen_detectors("all", pipeline, SAMPLING)[1]["guidance_norm_1"]


def test_an_empty_list_is_refused() -> None:
    refuse_none("all")
    with pytest.raises(ConfigurationError, match="no detector to score prompts with"):
        refuse_none([])
