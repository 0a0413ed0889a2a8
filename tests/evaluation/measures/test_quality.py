"""Figures of quality against torchmetrics, closed forms, and simulated repetitions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from memtrain.errors import DataError
from memtrain.evaluation.measures.distribution_figures import frechet_figure, kernel_figure
from memtrain.evaluation.measures.frechet import frechet_value
from memtrain.evaluation.measures.quality import (
    caption_fidelity,
    clip_score,
    embedding_diversity,
    quality_figures,
)
from memtrain.evaluation.measures.weights import Weights
from tests.evaluation.conftest import save_script


class Means(nn.Module):
    """The mean colour of each quarter is the features."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def drawn(*shape: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_both_ways_to_a_frechet_distance_agree() -> None:
    x, y = drawn(9, 6), drawn(12, 6, seed=1, shift=0.5)
    padded = [torch.cat([one, torch.zeros(len(one), 20)], dim=1) for one in (x, y)]
    assert frechet_value(*padded) == pytest.approx(frechet_value(x, y), rel=1e-9)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all extracted features")
def test_distances_are_torchmetrics_own() -> None:
    generator = torch.Generator().manual_seed(3)
    real, made = (torch.randint(low, 256, (40, 3, 16, 16), generator=generator).byte() for low in (0, 60))
    fid, kid = FrechetInceptionDistance(Means()), KernelInceptionDistance(Means(), subsets=1, subset_size=40)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(made, real=False)
    features = Means()(real), Means()(made)
    groups = [row // 4 for row in range(40)]
    assert frechet_figure(*features, groups=groups)["value"] == pytest.approx(float(fid.compute()), rel=1e-4)
    assert kernel_figure(*features, groups=groups)["value"] == pytest.approx(float(kid.compute()[0]), rel=1e-4)


def test_intervals_are_as_wide_as_repetitions_are_apart() -> None:
    groups = [row // 2 for row in range(60)]
    found = {frechet_figure: [], kernel_figure: []}
    errors = {frechet_figure: [], kernel_figure: []}
    for seed in range(20):
        # The two generations of a prompt are nearly one image.
        made = drawn(30, 4, seed=seed, shift=0.7).repeat_interleave(2, dim=0) + 0.01 * drawn(60, 4, seed=900 + seed)
        for figure in found:
            one = figure(drawn(50, 4, seed=100 + seed), made, groups=groups, seed=seed, resamples=80)
            found[figure].append(one["value"])
            errors[figure].append(one["standard_error"])
            assert one["interval"][0] < one["value"] < one["interval"][1]
    for figure, values in found.items():
        spread = float(torch.tensor(values).std())
        assert 0.6 * spread < sum(errors[figure]) / 20 < 1.7 * spread, figure.__name__


def test_a_kernel_distance_has_no_bias_and_a_frechet_distance_has_one() -> None:
    pairs = [(drawn(12, 5, seed=seed), drawn(12, 5, seed=500 + seed)) for seed in range(40)]
    kernel = [kernel_figure(*pair, groups=range(12), resamples=2)["value"] for pair in pairs]
    frechet = [frechet_value(*pair) for pair in pairs]
    assert abs(sum(kernel) / 40) < 0.25 and sum(frechet) / 40 > 1


def test_two_prompts_have_no_interval_and_groups_must_fit() -> None:
    x, y = drawn(5, 2), drawn(4, 2, seed=1)
    assert frechet_figure(x, y, groups=[0, 0, 1, 1])["interval"] is None
    assert kernel_figure(x, y, groups=[0, 0, 1, 1])["interval"] is None
    with pytest.raises(DataError, match="3 groups for 4 generations"):
        frechet_figure(x, y, groups=[0, 0, 1])
    with pytest.raises(DataError, match="1 real"):
        kernel_figure(x[:1], y, groups=[0, 0, 1, 1])


def test_a_score_of_captions_by_hand() -> None:
    texts = torch.eye(3)
    images = torch.stack([torch.eye(3)[[0, 0]], torch.eye(3)[[1, 2]], torch.eye(3)[[1, 1]]])
    assert clip_score(images, texts)["value"] == pytest.approx(50)
    assert clip_score(images, texts)["each"] == [100, 50, 0]
    found = caption_fidelity(images, texts, prompts=["a", "b", "c"])
    assert found["each"] == [1, 0.5, 0] and found["value"] == 0.5 and found["chance"] == pytest.approx(1 / 3)
    assert clip_score(-images, texts)["value"] == 0
    same = caption_fidelity(images, texts, prompts=["a", "a", "b"])
    assert same["chance"] == 0.5
    assert embedding_diversity(images).tolist() == [0, 1, 0]
    assert embedding_diversity(images[:, :1]) is None


def test_every_figure_has_an_interval_and_a_backend_or_a_reason(tmp_path: Path, clip_folder: Path) -> None:
    save_script(Means(), tmp_path / "inception.pt")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 2, 3, 16, 16), generator=generator).byte()
    real = torch.randint(0, 256, (6, 3, 16, 16), generator=generator).byte()
    prompts = ["a cat", "a dog", "bird", "zebra"]
    weights = Weights(clip=str(clip_folder), inception=str(tmp_path / "inception.pt"))
    bootstrap = {"seed": 0, "resamples": 50, "level": 0.9}
    found = quality_figures(
        images, prompts=prompts, real=real, weights=weights, losses=torch.rand(6), bootstrap=bootstrap
    )
    names = "fid kid_inception clip_fid clip_score caption_fidelity diversity diversity_clip heldout_loss"
    assert set(found) == set(names.split())
    for name, figure in found.items():
        assert figure["interval"][0] <= figure["value"] <= figure["interval"][1], name
        assert figure["backend"], name
    assert "inception.pt" in found["fid"]["backend"] and "biased" in found["fid"]["note"]
    nothing = quality_figures(images[:, :1], prompts=prompts, real=None, weights=Weights())
    assert all(figure["value"] is None and figure["reason"] for figure in nothing.values())
    alone = quality_figures(images, prompts=prompts, real=None, weights=weights)
    assert alone["fid"]["reason"] == alone["clip_fid"]["reason"] == "no images to compare with"
    with pytest.raises(DataError, match="4 prompts' images and 3"):
        quality_figures(images, prompts=prompts[:3], real=None, weights=Weights())
