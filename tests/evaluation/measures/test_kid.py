"""KID against sums written out, torchmetrics, and pictures whose class is known."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.measures import kid
from memtrain.evaluation.measures.kid import (
    distance_of_some,
    kernel_distance,
    mmd_terms,
    reason_to_leave_out,
    weighted_mmd,
)

SEED = {"seed": 0, "resamples": 200}


class Pixels(nn.Module):
    """Features that can be written down: the pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() / 128


def images(count: int, seed: int, *, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)


def written_out(real: Tensor, generated: Tensor) -> float:
    """The mean over seeds of Gretton's unbiased estimator, pair by pair."""
    count, seeds, size = generated.shape

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / size + 1) ** 3

    total = 0.0
    for seed in range(seeds):
        x, y = real.double(), generated[:, seed].double()
        for i in range(count):
            for j in range(count):
                if i != j:
                    total += k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
    return total / (seeds * count * (count - 1))


def test_value_is_the_unbiased_estimator() -> None:
    real, generated = images(7, 0), images(14, 1, high=200).unflatten(0, (7, 2))
    found = kernel_distance(Pixels(), real, generated=generated, batch_size=5, **SEED)
    expected = written_out(Pixels()(real), Pixels()(generated.flatten(0, 1)).unflatten(0, (7, 2)))
    assert found["value"] == pytest.approx(expected, rel=1e-6)
    assert (found["n_real"], found["n_generated"]) == (7, 14)
    assert found["subsets"] == "2 of 7, one per seed"


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all extracted features:UserWarning")
def test_value_is_that_of_torchmetrics_but_for_a_prompts_own_pairs() -> None:
    real, generated = images(9, 0), images(9, 1, high=200)
    metric = KernelInceptionDistance(feature=Pixels(), subsets=1, subset_size=9)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    x, y = Pixels()(real).double(), Pixels()(generated).double()
    cross = (x @ y.T / 48 + 1) ** 3
    without_own = (cross.sum() - cross.diag().sum()) / (9 * 8)
    found = kernel_distance(Pixels(), real, generated=generated[:, None], **SEED)["value"]
    assert found == pytest.approx(float(metric.compute()[0]) + 2 * float(cross.mean() - without_own), rel=1e-4)


def test_nothing_is_expected_of_equal_distributions_and_something_of_others() -> None:
    same = [
        kernel_distance(Pixels(), images(40, seed), generated=images(40, 100 + seed)[:, None], **SEED)
        for seed in range(20)
    ]
    values = torch.tensor([found["value"] for found in same])
    assert values.min() < 0 < values.max()
    assert values.mean().abs() < 3 * values.std() / 20**0.5
    spread, stated = float(values.std()), float(torch.tensor([found["standard_error"] for found in same]).mean())
    assert 0.5 < stated / spread < 2, "the bootstrap error is of the size of the scatter"
    other = kernel_distance(Pixels(), images(40, 0), generated=images(40, 100, high=128)[:, None], **SEED)
    assert other["interval"][0] > values.max()
    assert other["interval"][0] < other["value"] < other["interval"][1]


def test_a_sample_with_repetitions_never_compares_a_prompt_with_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    real, generated = torch.randn(5, 6, generator=generator), torch.randn(5, 1, 6, generator=generator)
    terms, counts = mmd_terms(real, generated), torch.tensor([[2.0, 1, 0, 1, 1]], dtype=torch.float64)
    rows = [0, 0, 1, 3, 4]
    pairs = [(a, b) for a in range(5) for b in range(5) if rows[a] != rows[b]]
    expected = sum(float(terms[rows[a], rows[b]]) for a, b in pairs) / (25 - 7)
    assert float(weighted_mmd(terms, counts)) == pytest.approx(expected)


def test_same_seed_same_figures() -> None:
    arguments: dict[str, Any] = {"real": images(6, 0), "generated": images(6, 1)[:, None]}
    first, again, other = (kernel_distance(Pixels(), **arguments, seed=seed, resamples=50) for seed in (3, 3, 4))
    assert first == again
    assert first["value"] == other["value"]
    assert first["standard_error"] != other["standard_error"]


def test_what_is_absent_is_left_out_with_a_reason_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason_to_leave_out(None, prompts=2) is None
    assert reason_to_leave_out(True, prompts=2) is None
    assert reason_to_leave_out(False, prompts=2) == "not asked for"
    assert "1 held-out" in (reason_to_leave_out(None, prompts=1) or "")
    find = importlib.util.find_spec
    monkeypatch.setattr(kid, "find_spec", lambda name: None if name in kid.PACKAGES else find(name))
    assert reason_to_leave_out(None, prompts=2) == kid.ABSENT
    with pytest.raises(ConfigurationError, match=r"memtrain\[quality\]"):
        reason_to_leave_out(True, prompts=2)


def test_features_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(DataError, match="at least 2 prompts"):
        mmd_terms(torch.zeros(1, 4), torch.zeros(1, 2, 4))
    with pytest.raises(DataError, match="one held-out image per prompt"):
        mmd_terms(torch.zeros(3, 4), torch.zeros(2, 2, 4))


def test_the_distance_of_some_is_that_of_all_when_none_is_left_out() -> None:
    real, generated = images(7, 0), images(21, 1, high=200).unflatten(0, (7, 3))
    found = kernel_distance(
        Pixels(), real, generated=generated, copies=torch.zeros(7, 3, dtype=torch.bool), batch_size=5, **SEED
    )
    assert found["without_copies"] == {"value": pytest.approx(found["value"], rel=1e-6), "n_generated": 21}
    assert kernel_distance(Pixels(), real, generated=generated, **SEED)["without_copies"] is None


def test_copies_of_held_out_like_images_flatter_and_are_left_out() -> None:
    real = Pixels()(images(40, 0))
    generated = Pixels()(images(80, 1, high=120)).unflatten(0, (40, 2))
    copies = torch.zeros(40, 2, dtype=torch.bool)
    copies[:, 1] = True
    flattered = generated.clone()
    flattered[:, 1] = Pixels()(images(40, 2))
    every = torch.ones(40, 2, dtype=torch.bool)
    assert distance_of_some(real, flattered, every) < 0.6 * distance_of_some(real, generated, every)
    assert distance_of_some(real, flattered, ~copies) == distance_of_some(real, generated, ~copies)
    kept, (first, second) = torch.zeros(40, 2, dtype=torch.bool), (3, 8)
    kept[first, 0] = kept[second, 0] = True
    pair = [generated[first, 0].double(), generated[second, 0].double()]

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a.double() @ b.double()) / len(a) + 1) ** 3

    within = sum(k(real[i], real[j]) for i in range(40) for j in range(40) if i != j) / (40 * 39)
    across = [k(real[i], y) for y, own in zip(pair, (first, second), strict=True) for i in range(40) if i != own]
    expected = within + k(*pair) - 2 * sum(across) / len(across)
    assert distance_of_some(real, generated, kept) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_prompts_have_no_distance(count: int) -> None:
    with pytest.raises(DataError, match="at least 2 prompts"):
        kernel_distance(Pixels(), images(count, 0), generated=images(2 * count, 1).view(count, 2, 3, 4, 4), **SEED)
    assert f"{count} held-out prompt(s)" in str(reason_to_leave_out(None, prompts=count))


def test_the_error_of_two_prompts_is_not_known() -> None:
    two = kernel_distance(Pixels(), images(2, 0), generated=images(4, 1).view(2, 2, 3, 4, 4), **SEED)
    assert (two["standard_error"], two["interval"], two["n_real"]) == (None, None, 2)
    three = kernel_distance(Pixels(), images(3, 0), generated=images(6, 1).view(3, 2, 3, 4, 4), **SEED)
    assert three["standard_error"] > 0
    assert three["interval"][0] < three["interval"][1]
