"""The threshold: mean plus one standard deviation of what the detector of the same source says."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from memtrain.errors import ConfigurationError
from memtrain.functional.noise import SimilarityWindow, highest_similarity, noise_difference
from memtrain.localization.predictor import Predictor
from memtrain.localization.settings import Settings
from memtrain.localization.threshold import Threshold, calibrate_threshold, pairwise_scores

PROMPTS = ["other 1", "other 2", "memorized 1"]


@pytest.mark.parametrize("settings", [Settings(seeds=3), Settings.published(seeds=3)])
def test_scores_are_those_of_each_prompt_alone(predictor: Predictor, settings: Settings) -> None:
    scores = pairwise_scores(predictor, iter(PROMPTS), settings=settings, batch_size=7)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for prompt, score in zip(PROMPTS, scores, strict=True):
        with torch.no_grad():
            text = predictor.encode([prompt]).expand(3, -1, -1)
            steps = torch.full((3,), 961.0 if settings.call else 981.0)
            differences = noise_difference(predictor.predict(noise, steps, text), noise)
        expected = highest_similarity(differences, data_range=settings.data_range, cropped=settings.cropped)
        torch.testing.assert_close(score, expected, rtol=0, atol=1e-5)


def test_it_is_the_mean_and_one_deviation_of_the_highest(predictor: Predictor, tmp_path: Path) -> None:
    settings = Settings(seeds=3)
    highest = pairwise_scores(predictor, PROMPTS, settings=settings).amax(dim=1)
    threshold = calibrate_threshold(predictor, PROMPTS, settings=settings, source="captions")
    assert threshold.value == pytest.approx(float(highest.mean() + highest.std()))
    assert (threshold.count, threshold.source, threshold.window["kernel"]) == (3, "captions", 7)
    threshold.save(tmp_path / "t.json")
    assert asdict(Threshold.load(tmp_path / "t.json")) == asdict(threshold)
    threshold.check(settings, SimilarityWindow.of(8, 8))
    with pytest.raises(ConfigurationError, match="'seeds': 3"):
        threshold.check(Settings(), SimilarityWindow.of(8, 8))
    with pytest.raises(ConfigurationError, match="'scales': 1"):
        threshold.check(settings, SimilarityWindow.of(64, 64))


def test_what_is_no_threshold_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="1 prompts"):
        calibrate_threshold(predictor, ["one"])
    for content in ("{}", "[]", "no"):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(ConfigurationError, match="holds no threshold"):
            Threshold.load(tmp_path / "t.json")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_prompt_and_one_calibrate_nothing_and_two_do(predictor: Predictor, count: int) -> None:
    settings = Settings(seeds=2)
    scores = pairwise_scores(predictor, PROMPTS[:count], settings=settings)
    assert scores.shape == (count, 2)
    if count < 2:
        with pytest.raises(ConfigurationError, match=f"on {count} prompts"):
            calibrate_threshold(predictor, PROMPTS[:count], settings=settings)
    else:
        assert calibrate_threshold(predictor, PROMPTS[:count], settings=settings).count == 2
