"""Scores of many masks at once are those of each alone, with what they share computed once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from memtrain.localization.mask_scores import ROUNDING, MaskScores
from memtrain.localization.predictor import Predictor
from memtrain.localization.published import PublishedSearch
from memtrain.localization.selection import Mask
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics

from .conftest import FEW, THRESHOLD

MASKS = [
    frozenset({(0, 1)}),
    frozenset({(0, 1), (1, 3)}),
    frozenset({(0, 1), (1, 3), (2, 0)}),
    frozenset((0, neuron) for neuron in range(8)),
    frozenset((1, neuron) for neuron in range(16)),
    frozenset((2, neuron) for neuron in range(16)),
    frozenset(),
    frozenset((layer, neuron) for layer in range(3) for neuron in range(8)),
]


@contextmanager
def rows_through(module: nn.Module) -> Iterator[list[int]]:
    """How many rows a module gets in each of its calls."""
    seen: list[int] = []
    handle = module.register_forward_hook(lambda _, args, output: seen.append(len(args[0])))
    yield seen
    handle.remove()


def inner(predictor: Predictor, stage: str) -> nn.Module:
    """A layer inside of a stage, which runs as often as the stage is computed."""
    return predictor.denoiser.get_submodule(stage)


@pytest.mark.parametrize("data_range", [1.0, None])
@pytest.mark.parametrize("share", [True, False])
def test_masks_together_score_what_each_does_alone(
    predictor: Predictor, statistics: ActivationStatistics, data_range: float | None, share: bool
) -> None:
    settings = Settings(data_range=data_range, factor=0.25, **FEW)
    search = PublishedSearch(predictor, predictor.sites(), settings, statistics=statistics, threshold=THRESHOLD)
    scores = MaskScores(predictor, predictor.sites(), settings, batch_size=9, share=share)
    similarity = scores.begin("memorized 0")
    kept = torch.tensor([True, True, False, True])
    scores.keep(kept)
    assert similarity.shape == (4, 4)
    with torch.no_grad():
        plain = search._differences("memorized 0")[kept]
        expected = {mask: search._score("memorized 0", plain, kept, lists(mask)) for mask in MASKS}
    scores.evaluate(MASKS[:3])
    scores.evaluate(MASKS)
    for mask, score in expected.items():
        assert scores.score(mask) == pytest.approx(score, abs=1e-5)
        assert scores.settle(mask) == score
    assert len({round(score, 5) for score in expected.values()}) > 3


def lists(mask: Mask) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(neuron for place, neuron in sorted(mask) if place == layer) for layer in range(3))


def test_what_masks_share_is_computed_once(predictor: Predictor, settings: Settings) -> None:
    scores = MaskScores(predictor, predictor.sites(), settings, batch_size=100)
    scores.begin("memorized 0")
    scores.keep(torch.ones(4, dtype=torch.bool))
    first = inner(predictor, "down_blocks.0.attentions.0.norm")
    second = inner(predictor, "down_blocks.1.attentions.0.norm")
    with rows_through(first) as at_first, rows_through(second) as at_second:
        scores.evaluate([MASKS[0], MASKS[1], MASKS[2]])
        assert (at_first, at_second) == ([4], [8])
        scores.evaluate([frozenset({(0, 1), (1, 7)}), frozenset({(0, 1), (1, 8)})])
        assert (at_first, at_second) == ([4], [8, 8])
        scores.evaluate([frozenset({(1, 7)}), frozenset({(1, 8)})])
        assert at_first == [4, 4]
    assert (scores.calls, scores.images) == (4, 4 + 12 + 8 + 8)
    assert all("forward" not in vars(module) for module in predictor.denoiser.modules())


def test_what_one_mask_has_computed_serves_the_next(predictor: Predictor, settings: Settings) -> None:
    scores = MaskScores(predictor, predictor.sites(), settings, batch_size=4)
    scores.begin("memorized 0")
    scores.keep(torch.ones(4, dtype=torch.bool))
    first = inner(predictor, "down_blocks.0.attentions.0.norm")
    with rows_through(first) as at_first:
        scores.evaluate([MASKS[0]])
        scores.evaluate([MASKS[1]])
        scores.evaluate([MASKS[2]])
    assert at_first == [4], "all three begin alike"
    for mask in MASKS[:3]:
        assert scores.score(mask) == pytest.approx(scores.settle(mask), abs=1e-5)


def test_one_seed_above_the_threshold_decides(predictor: Predictor, settings: Settings) -> None:
    scores = MaskScores(predictor, predictor.sites(), settings, batch_size=100)
    scores.begin("memorized 0")
    scores.keep(torch.ones(4, dtype=torch.bool))
    weak, strong = frozenset[tuple[int, int]](), MASKS[-1]
    scores.evaluate([], probe=[weak, strong])
    assert scores.images == 4 + 2
    assert scores.answer(weak, lambda score: score < 0.9) is False
    assert scores.answer(strong, lambda score: score < 1.1) is None
    assert (scores.probed(strong), scores.missing(strong)) == (True, 3)
    scores.evaluate([strong])
    assert scores.images == 4 + 2 + 3
    assert scores.answer(strong, lambda score: score < 1.1) is True


def test_a_score_on_the_threshold_is_settled(predictor: Predictor, settings: Settings) -> None:
    scores = MaskScores(predictor, predictor.sites(), settings, batch_size=100)
    scores.begin("memorized 0")
    scores.keep(torch.ones(4, dtype=torch.bool))
    scores.evaluate([MASKS[1]])
    threshold = scores.score(MASKS[1]) + ROUNDING / 3

    def below(score: float) -> bool:
        return score < threshold

    assert scores.answer(MASKS[1], below) is None
    scores.evaluate([MASKS[1]])
    assert scores.answer(MASKS[1], below) is (scores.settle(MASKS[1]) < threshold)


def test_half_precision_is_settled_from_farther_away(predictor: Predictor, settings: Settings) -> None:
    half = replace(predictor, denoiser=copy.deepcopy(predictor.denoiser).to(torch.bfloat16))
    found = [MaskScores(one, one.sites(), settings, batch_size=4)._rounding for one in (predictor, half)]
    assert found == [ROUNDING, 1e-3]


def test_an_error_inside_leaves_nothing_behind(predictor: Predictor, settings: Settings) -> None:
    calls = 0

    def fail(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("out of memory")
        return predictor.predict(latents, timesteps, text)

    failing = Predictor(
        predictor.denoiser, predictor.encode, fail, shape=predictor.shape, timesteps=predictor.timesteps
    )
    scores = MaskScores(failing, failing.sites(), settings, batch_size=100)
    scores.begin("memorized 0")
    scores.keep(torch.ones(4, dtype=torch.bool))
    hooks = sum(len(module._forward_hooks) for module in predictor.denoiser.modules())
    with pytest.raises(RuntimeError, match="out of memory"):
        scores.evaluate(MASKS)
    assert sum(len(module._forward_hooks) for module in predictor.denoiser.modules()) == hooks
    assert all("forward" not in vars(module) for module in predictor.denoiser.modules())
