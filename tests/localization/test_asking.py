"""Guidance in both forms, another timestep for the refinement, separate thresholds and half precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from memtrain.errors import ConfigurationError
from memtrain.localization.asking import asked_as, refinement_timestep
from memtrain.localization.locate import locate
from memtrain.localization.predictor import Predictor
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics

from .conftest import FEW, THRESHOLD

PROMPTS = ["memorized 0"]


def test_guidance_is_the_formula_and_the_published_one_has_the_halves_exchanged(predictor: Predictor) -> None:
    noise, text = predictor.noise(2), predictor.encode(["memorized 0"]).expand(2, -1, -1)
    steps, empty = torch.full((2,), 981.0), predictor.encode([""]).expand(2, -1, -1)
    with torch.no_grad():
        given, without = predictor.predict(noise, steps, text), predictor.predict(noise, steps, empty)
        clean = asked_as(predictor, Settings(guidance_scale=7.0)).predict(noise, steps, text)
        swapped = asked_as(predictor, Settings.published(guidance_scale=7.0)).predict(noise, steps, text)
    torch.testing.assert_close(clean, 7 * given - 6 * without, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(swapped, 7 * without - 6 * given, rtol=1e-4, atol=1e-3)
    assert asked_as(predictor, Settings.published()) is predictor


CHANGES = [
    {"guidance_scale": 3.0},
    {"selection_threshold": 0.6, "refinement_threshold": 0.75},
    {"refinement_steps": 2},
    {"initial_theta": None, "most_k": 12},
    {"initial_k": None},
    {"factor": 0.5},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_setting_finds_the_same_neurons_fast_and_as_published(
    predictor: Predictor, statistics: ActivationStatistics, change: dict
) -> None:
    known = replace(predictor, schedule=lambda steps: (900.0, 500.0) if steps == 2 else predictor.timesteps)
    options = {"statistics": statistics, "threshold": THRESHOLD}
    settings = Settings.published(**{**FEW, **change})
    slow = locate(known, PROMPTS, settings=settings, **options)
    fast = locate(known, PROMPTS, settings=replace(settings, sequential=False), **options)
    plain = locate(known, PROMPTS, settings=Settings.published(**FEW), **options)
    for one, other in zip(slow.found, fast.found, strict=True):
        assert (one.initial, one.refined, one.theta, one.k) == (other.initial, other.refined, other.theta, other.k)
        assert one.pairs == pytest.approx(other.pairs, abs=1e-5) and len(one.pairs) == 6
        assert max(one.pairs) == pytest.approx(one.similarity, abs=1e-6)
    kinds = [
        [(one.initial, one.refined, one.score, one.k, one.calls) for one in found.found] for found in (slow, plain)
    ]
    assert kinds[0] != kinds[1], "the setting has an effect"


def test_the_refinement_by_relative_change_keeps_what_changes_more(
    predictor: Predictor, statistics: ActivationStatistics
) -> None:
    options = {"statistics": statistics, "threshold": THRESHOLD}
    found = {}
    for limit in (1e-6, 0.05, 1e12):
        settings = Settings.published(**FEW, relative_refinement=limit)
        found[limit] = locate(predictor, PROMPTS[:1], settings=settings, **options).found[0]
    assert found[1e12].neurons == 0, "any change is small enough"
    assert 0 < found[0.05].neurons < found[1e-6].neurons


def test_half_precision_searches_and_a_refinement_elsewhere_needs_a_schedule(
    predictor: Predictor, statistics: ActivationStatistics
) -> None:
    options = {"statistics": statistics, "threshold": THRESHOLD}
    half = Settings(**FEW, precision="bfloat16")
    found = locate(predictor, PROMPTS[:1], settings=half, **options).found[0]
    whole = locate(predictor, PROMPTS[:1], settings=Settings(**FEW), **options).found[0]
    assert found.neurons > 0 and found.similarity == pytest.approx(whole.similarity, abs=0.05)
    assert found.similarity != whole.similarity, "it was computed in another type"
    with pytest.raises(ConfigurationError, match="has only one schedule"):
        refinement_timestep(predictor, Settings(refinement_steps=20))
