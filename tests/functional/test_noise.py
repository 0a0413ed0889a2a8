"""Noise differences and their similarity: closed forms, the window that fits, and the two data ranges."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from memtrain.errors import ConfigurationError
from memtrain.functional.noise import SimilarityWindow, highest_similarity, noise_difference, pairwise_similarity


def test_differences_are_scaled_per_image_and_channel() -> None:
    prediction, noise = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    scaled = noise_difference(prediction, noise)
    assert torch.equal(scaled.amin(dim=(2, 3)), torch.zeros(2, 3))
    assert torch.equal(scaled.amax(dim=(2, 3)), torch.ones(2, 3))
    difference = (prediction - noise)[1, 2]
    torch.testing.assert_close(scaled[1, 2], (difference - difference.min()) / (difference.max() - difference.min()))
    assert not noise_difference(noise, noise).any()


@pytest.mark.parametrize("size", [7, 8, 16, 24, 43, 44, 64])
def test_equal_images_have_similarity_one_and_others_less(size: int) -> None:
    images = torch.rand(3, 4, size, size)
    torch.testing.assert_close(pairwise_similarity(images, images), torch.ones(3))
    other = pairwise_similarity(images, torch.rand(3, 4, size, size))
    assert bool((other < 0.7).all())
    halves = torch.cat([pairwise_similarity(images[:1], images[1:2]), pairwise_similarity(images[1:2], images[2:])])
    torch.testing.assert_close(pairwise_similarity(images[:2], images[1:]), halves)


def ssim(first: torch.Tensor, second: torch.Tensor) -> float:
    """Wang et al. (2004) written out: an 11-pixel Gaussian window of 1.5 pixels, K1 = 0.01, K2 = 0.03, range 1.

    Images are continued by reflection.
    """
    offset = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offset**2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2)[None, None]
    x, y = (torch.nn.functional.pad(image[:, None].double(), (5,) * 4, mode="reflect") for image in (first, second))

    def mean(image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(image, window)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    value = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return float(value.mean())


def test_one_scale_is_the_published_ssim() -> None:
    first = torch.rand(2, 16, 16)
    second = 0.7 * first + 0.3 * torch.rand(2, 16, 16)
    # One scale is SSIM to the power 0.33.
    expected = ssim(first, second) ** 0.33
    assert float(pairwise_similarity(first[None], second[None])) == pytest.approx(expected, abs=1e-4)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="6 x 8 pixels"):
        pairwise_similarity(torch.rand(1, 4, 6, 8), torch.rand(1, 4, 6, 8))
    with pytest.raises(ConfigurationError, match="found 1"):
        highest_similarity(torch.rand(1, 4, 8, 8))


def test_the_window_of_stable_diffusion_is_the_published_one() -> None:
    assert SimilarityWindow.of(64, 64) == SimilarityWindow(scales=3, kernel=11, sigma=1.5)
    assert SimilarityWindow.of(96, 24).scales == 2
    assert SimilarityWindow.of(8, 64) == SimilarityWindow(scales=1, kernel=7, sigma=0.8)


def test_the_published_data_range_is_that_of_all_pairs_together() -> None:
    base = torch.rand(1, 4, 64, 64)
    images = (base + 0.3 * torch.rand(4, 4, 64, 64)) / 1.3
    first, second = torch.combinations(torch.arange(4)).T
    published = multiscale_structural_similarity_index_measure(
        images[first], images[second], reduction="none", kernel_size=11, betas=(0.33, 0.33, 0.33)
    )
    together = pairwise_similarity(images[first], images[second], data_range=None)
    torch.testing.assert_close(together, published, rtol=0, atol=0)
    alone = pairwise_similarity(images[:1], images[1:2], data_range=None)
    assert float((alone - together[0]).abs()) > 1e-6
    highest = highest_similarity(images, data_range=None)
    expected = torch.stack([published[(first == image) | (second == image)].max() for image in range(4)])
    assert torch.equal(highest, expected)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_pair_one_and_two_have_as_many_similarities(count: int) -> None:
    images = torch.rand(count, 1, 8, 8)
    torch.testing.assert_close(pairwise_similarity(images, images), torch.ones(count))
    assert noise_difference(images, torch.rand_like(images)).shape == images.shape
    if count < 2:
        with pytest.raises(ConfigurationError, match=f"found {count}"):
            highest_similarity(images)
    else:
        assert highest_similarity(images).shape == (2,)
