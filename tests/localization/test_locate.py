"""The fast search finds what the published one does; masks do what they say; results survive interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.errors import ConfigurationError
from memtrain.functional.noise import noise_difference, pairwise_similarity
from memtrain.localization.fast import FastSearch
from memtrain.localization.locate import locate
from memtrain.localization.predictor import Predictor
from memtrain.localization.published import PublishedSearch
from memtrain.localization.results import Localization, load_masks
from memtrain.localization.selection import mask_of
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics

from .conftest import FEW, THRESHOLD

PROMPTS = [f"memorized {index}" for index in range(20)] + ["other 100", "other 101"]


@pytest.mark.parametrize(("published", "prompts"), [(True, PROMPTS), (False, PROMPTS[:8])])
def test_the_fast_search_finds_the_neurons_of_the_published_one(
    predictor: Predictor, statistics: ActivationStatistics, published: bool, prompts: list[str]
) -> None:
    slow = Settings.published(**FEW) if published else Settings(sequential=True, **FEW)
    fast = Settings.published(sequential=False, **FEW) if published else Settings(**FEW)
    options = {"statistics": statistics, "threshold": THRESHOLD}
    expected = locate(predictor, prompts, settings=slow, **options)
    found = locate(predictor, prompts, settings=fast, **options)
    for one, other in zip(expected.found, found.found, strict=True):
        assert other.initial == one.initial
        assert other.refined == one.refined
        assert (other.kept_seeds, other.theta, other.k) == (one.kept_seeds, one.theta, one.k)
        assert other.score == pytest.approx(one.score, abs=1e-5)
    # The sets are not trivial: some prompts end at once and some never fall below, some lists repeat a neuron.
    sizes = [one.neurons for one in expected.found if one.memorized]
    assert len(sizes) > len(prompts) / 2 and min(sizes) > 0 and len(set(sizes)) > 3
    thetas = {one.theta for one in expected.found if one.memorized}
    assert {3.0, 1.5} <= thetas
    assert any(len(neurons) > len(set(neurons)) for one in expected.found for neurons in one.initial)
    assert sum(one.calls for one in found.found) < sum(one.calls for one in expected.found) / 1.5


@pytest.mark.parametrize(("worth", "share", "batch_size"), [(2.0, False, 1), (0.05, True, 200)])
def test_how_it_is_evaluated_changes_no_neuron(
    predictor: Predictor, statistics: ActivationStatistics, worth: float, share: bool, batch_size: int
) -> None:
    options = {"statistics": statistics, "threshold": THRESHOLD}
    sites, prompts = predictor.sites(), PROMPTS[:3]
    expected = locate(predictor, prompts, settings=Settings(**FEW), **options)
    search = FastSearch(predictor, sites, Settings(**FEW), batch_size=batch_size, worth=worth, share=share, **options)
    assert [search.locate(prompt).refined for prompt in prompts] == [one.refined for one in expected.found]


def test_a_checked_split_finds_what_greedy_finds_or_says_that_it_went_back(
    predictor: Predictor, statistics: ActivationStatistics
) -> None:
    options = {"statistics": statistics, "threshold": THRESHOLD}
    greedy = locate(predictor, PROMPTS[:4], settings=Settings(**FEW), **options)
    rules = set()
    for margin in (0.02, 0.0):
        settings = Settings(**FEW, refinement="checked_split", split_margin=margin)
        split = locate(predictor, PROMPTS[:4], settings=settings, **options)
        rules |= {one.refinement for one in split.found}
        for one, other in zip(greedy.found, split.found, strict=True):
            assert mask_of(one.refined) == mask_of(other.refined)
    assert rules == {"checked_split", "greedy"}


def test_masked_neurons_change_the_prediction_as_the_score_says(
    predictor: Predictor, statistics: ActivationStatistics, settings: Settings
) -> None:
    prompt = "memorized 3"
    located = locate(predictor, [prompt], statistics=statistics, threshold=THRESHOLD, settings=settings)
    noise = predictor.noise(4)
    text = predictor.encode([prompt]).expand(4, -1, -1)
    steps = torch.full((4,), predictor.timesteps[0])
    with torch.no_grad():
        plain = noise_difference(predictor.predict(noise, steps, text), noise)
        with located[prompt].on(predictor.denoiser):
            masked = noise_difference(predictor.predict(noise, steps, text), noise)
    score = float(pairwise_similarity(plain, masked).max())
    assert score == pytest.approx(located.found[0].score, abs=1e-5)
    assert score < THRESHOLD


def test_prompts_below_the_threshold_get_no_mask(predictor: Predictor, statistics: ActivationStatistics) -> None:
    located = locate(predictor, ["other 100"], statistics=statistics, threshold=1.0, settings=Settings(**FEW))
    assert list(located) == [] and located.union() is None
    assert located.found[0].memorized is False and located.found[0].calls == 1
    assert located.table.to_pylist()[0]["refined_per_layer"] == [0, 0, 0]


def test_a_search_goes_on_where_it_stopped_and_shards_add_up(
    predictor: Predictor, statistics: ActivationStatistics, settings: Settings, tmp_path: Path
) -> None:
    prompts = ["memorized 0", "other 1", "memorized 2", "memorized 3", "memorized 0"]
    options = {"statistics": statistics, "threshold": THRESHOLD, "settings": settings}
    whole = locate(predictor, prompts, **options)
    first = locate(predictor, prompts, shard=(0, 2), output=tmp_path, **options)
    assert [one.prompt for one in first.found] == ["memorized 0", "memorized 2"]
    both = locate(predictor, prompts, shard=(1, 2), output=tmp_path, **options)
    assert [one.prompt for one in both.found] == ["other 1", "memorized 3"]
    loaded = Localization.load(tmp_path)
    assert {p: m.channels for p, m in loaded.items()} == {p: m.channels for p, m in whole.items()}
    assert {p: m.channels for p, m in load_masks(tmp_path / "masks.safetensors").items()} == {
        p: m.channels for p, m in whole.items()
    }
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "prompts").iterdir()}
    (tmp_path / "prompts" / next(iter(stamps)).name).unlink()
    again = locate(predictor, prompts, output=tmp_path, **options)
    assert [one.refined for one in again.found] == [one.refined for one in whole.found]
    kept = [path for path, stamp in stamps.items() if path.stat().st_mtime_ns == stamp]
    assert len(kept) == len(stamps) - 1
    with pytest.raises(ConfigurationError, match="another threshold"):
        locate(predictor, prompts, output=tmp_path, **{**options, "threshold": 0.8})


def test_a_pipeline_needs_nothing_but_prompts(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        before = torch.get_rng_state()
        located = locate(pipeline, ["a cat", "b"], other_prompts=["some", "words", "that differ"], output=tmp_path)
        assert torch.equal(torch.get_rng_state(), before)
    assert [one.prompt for one in located.found] == ["a cat", "b"]
    assert not pipeline.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_v._forward_hooks
    search = json.loads((tmp_path / "search.json").read_text())
    assert search["window"] == {"scales": 1, "kernel": 7, "sigma": 0.8}
    assert search["threshold_from"] == "given" and search["statistics_from"] == "3 prompts, given"
    assert json.loads((tmp_path / "threshold.json").read_text())["count"] == 3
    again = locate(pipeline, ["c"], output=tmp_path)
    assert again.search == located.search


def test_dead_forwards_cost_what_the_published_code_runs_and_find_the_same(
    predictor: Predictor, statistics: ActivationStatistics
) -> None:
    sites, prompt = predictor.sites(), "memorized 7"
    options = {"statistics": statistics, "threshold": THRESHOLD}
    lean = PublishedSearch(predictor, sites, Settings.published(**FEW), **options).locate(prompt)
    dead = PublishedSearch(predictor, sites, Settings.published(**FEW, dead_forwards=True), **options).locate(prompt)
    assert dead.refined == lean.refined
    selections = 1 + (lean.k or 0)
    assert dead.calls == 2 * (lean.calls + 2) + selections


def test_what_makes_no_sense_is_refused(predictor: Predictor, statistics: ActivationStatistics) -> None:
    for prompts, shard in (([], (0, 1)), (["a"], (2, 2))):
        with pytest.raises(ConfigurationError, match="prompts and a valid shard"):
            locate(predictor, prompts, shard=shard)
    with pytest.raises(ConfigurationError, match="no tokenizer"):
        locate(predictor, ["a"], statistics=statistics)
    small = Predictor(
        predictor.denoiser, predictor.encode, predictor.predict, shape=(4, 4, 4), timesteps=predictor.timesteps
    )
    with pytest.raises(ConfigurationError, match="4 x 4 pixels"):
        locate(small, ["a"], statistics=statistics, threshold=0.5)
    lacking = replace(statistics, mean=dict(list(statistics.mean.items())[1:]))
    with pytest.raises(ConfigurationError, match="do not fit"):
        locate(predictor, ["a"], statistics=lacking, threshold=0.5)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_prompt_is_refused_and_one_and_two_are_searched(
    predictor: Predictor, statistics: ActivationStatistics, count: int
) -> None:
    prompts, options = ["other 1", "other 2"][:count], {"statistics": statistics, "settings": Settings(**FEW)}
    if not count:
        with pytest.raises(ConfigurationError, match="prompts and a valid shard"):
            locate(predictor, prompts, threshold=1.1, **options)
    else:
        found = locate(predictor, prompts, threshold=1.1, **options)
        assert [one.prompt for one in found.found] == prompts
        assert (len(found), found.union(), found.table.num_rows) == (0, None, count)
