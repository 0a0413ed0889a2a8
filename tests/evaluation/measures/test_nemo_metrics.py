"""NeMo's metrics with a scripted descriptor and a random CLIP, against medians by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from memtrain.errors import DataError
from memtrain.evaluation.measures.clip_scores import ClipFeatures
from memtrain.evaluation.measures.frechet import frechet_distance
from memtrain.evaluation.measures.nemo_metrics import (
    by_kind,
    distribution_metrics,
    load_inception,
    nemo_metrics,
    pairwise_median,
)
from memtrain.evaluation.measures.weights import Weights
from tests.evaluation.conftest import save_script


class UpperLeft(nn.Module):
    """The colour of the upper left pixel, black as zero again, is the descriptor."""

    def forward(self, images: Tensor) -> Tensor:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        return images[:, :, 0, 0] * std + mean


class Features(nn.Module):
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        return images.mean(dim=(2, 3)) if return_features else images.mean(dim=(1, 2, 3))[:, None]


def images(angles: Tensor) -> Tensor:
    """Images whose descriptors lie in a plane, at these angles in degrees."""
    radians = angles.deg2rad()
    colour = torch.stack([radians.cos(), radians.sin(), torch.zeros_like(radians)], dim=-1)
    return (colour * 255).round().to(torch.uint8)[..., None, None].expand(*angles.shape, 3, 4, 4)


def cosine(degrees: float) -> float:
    return float(torch.tensor(degrees).deg2rad().cos())


@pytest.fixture
def sscd(tmp_path: Path) -> str:
    path = tmp_path / "sscd.pt"
    save_script(UpperLeft(), path)
    return str(path)


# Prompt 0 is verbatim: 10 degrees away from its original at best; prompt 1 is at least 50 away.
UNBLOCKED = torch.tensor([[10.0, 20.0, 30.0], [50.0, 60.0, 90.0]])
BLOCKED = torch.tensor([[40.0, 80.0, 60.0], [50.0, 70.0, 80.0]])
REFERENCES = torch.tensor([[0.0], [0.0]])


def test_each_metric_is_its_median_over_generations_and_prompts(sscd: str) -> None:
    found = nemo_metrics(
        images(BLOCKED),
        images(UNBLOCKED),
        references=images(REFERENCES),
        prompts=["a", "b"],
        weights=Weights(sscd=sscd),
    )
    # Differences of the same seed: 30, 60, 30 and 0, 10, 10.
    for name, verbatim, template in (
        ("SSCD_gen", 30, 10),
        ("SSCD_orig", 40, 50),
        ("SSCD_orig_median", 60, 70),
        ("D_SSCD", 20, 20),
    ):
        assert found[name]["verbatim"] == pytest.approx({"median": cosine(verbatim), "mad": 0, "n": 1}, abs=0.01), name
        assert found[name]["template"] == pytest.approx({"median": cosine(template), "mad": 0, "n": 1}, abs=0.01), name
        assert found[name]["all"]["n"] == 2
    assert found["SSCD_gen"]["all"]["median"] == pytest.approx(cosine(30), abs=0.01)
    assert found["without_mask"]["SSCD_orig"]["verbatim"]["median"] == pytest.approx(cosine(10), abs=0.01)
    assert found["without_mask"]["D_SSCD"]["template"]["median"] == pytest.approx(cosine(30), abs=0.01)
    assert found["sscd_convention"] == {"name": "nemo", "paper_weights": "sscd_disc_mixup"}
    assert not {"A_CLIP", "FID"} & set(found), "no weights, no figure"


def test_another_convention_has_another_name(sscd: str) -> None:
    arguments = {"references": images(REFERENCES), "prompts": ["a", "b"]}
    weights = Weights(sscd=sscd, sscd_convention="membench")
    found = nemo_metrics(images(BLOCKED), images(UNBLOCKED), **arguments, weights=weights)
    assert set(found) == {"SSCD (membench)", "without_mask", "sscd_convention"}
    assert found["SSCD (membench)"]["top_1"] == pytest.approx((cosine(40) + cosine(50)) / 2, abs=0.01)
    assert nemo_metrics(images(BLOCKED), images(UNBLOCKED), **arguments, weights=Weights()) == {}


def test_alignment_is_the_median_cosine_to_the_prompt(clip_folder: Path) -> None:
    pixels = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    weights = Weights(clip=str(clip_folder))
    found = nemo_metrics(pixels, pixels.flip(1), references=pixels[:, :1], prompts=["a b", "c"], weights=weights)
    clip = ClipFeatures(clip_folder)
    expected = torch.einsum("pkd,pd->pk", clip.images(pixels), clip.texts(["a b", "c"])).median(dim=1).values
    assert found["A_CLIP"]["all"]["median"] == pytest.approx(float(expected.min()))
    assert found["A_CLIP"]["all"]["mad"] == 0, "the lower of 0 and the difference"
    assert found["without_mask"]["A_CLIP"] == found["A_CLIP"]
    assert "verbatim" not in found["A_CLIP"], "not known without SSCD"


def test_a_single_generation_has_no_diversity() -> None:
    assert pairwise_median(torch.ones(2, 1, 3)).isnan().all()


def test_distances_between_distributions_need_their_own_weights(tmp_path: Path, clip_folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    real, made = (torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator) for _ in range(2))
    assert distribution_metrics(real, made, weights=Weights()) == {}
    path = tmp_path / "inception.pt"
    save_script(Features(), path)
    found = distribution_metrics(real, made, weights=Weights(inception=str(path), clip=str(clip_folder)))
    assert load_inception(path)(real).shape == (6, 3)
    assert found["FID"] == frechet_distance(load_inception(path)(real), load_inception(path)(made))
    clip = ClipFeatures(clip_folder)
    assert found["CLIP_FID"] == frechet_distance(clip.images(real, unit=False), clip.images(made, unit=False))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_have_no_distribution(count: int) -> None:
    two = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for real, generated in ((two[:count], two), (two, two[:count])):
        with pytest.raises(DataError, match="no distribution to compare"):
            distribution_metrics(real, generated, weights=Weights())
    assert distribution_metrics(two, two, weights=Weights()) == {}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_prompt_one_and_two_have_medians_by_kind(count: int) -> None:
    found = by_kind(pairwise_median(torch.ones(count, 2, 3)), torch.ones(count, dtype=torch.bool))
    assert [found[kind]["n"] for kind in ("all", "verbatim", "template")] == [count, count, 0]
    alone = by_kind(pairwise_median(torch.ones(count, 1, 3)), None)
    assert alone == {"all": {"median": None, "mad": None, "n": 0}}, "a single generation has no pair"
