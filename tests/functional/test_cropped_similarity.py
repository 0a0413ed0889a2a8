"""The published arithmetic: by the definition, and by what torchmetrics 1.3.2 gave for the same numbers."""

from __future__ import annotations

import pytest
import torch

from memtrain.functional.cropped_similarity import cropped_ms_ssim
from memtrain.functional.noise import highest_similarity, pairwise_similarity, similarity_matrix


def pairs(count: int, channels: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    first = torch.rand(count, channels, size, size, generator=generator)
    return first, 0.6 * first + 0.4 * torch.rand(count, channels, size, size, generator=generator)


def test_the_scores_are_those_of_the_version_that_the_authors_pin() -> None:
    """Expected values are those of torchmetrics 1.3.2 on float64, with `reduction="none"` and its own data range."""
    first, second = (images.double() for images in pairs(3, 2, 8))
    small = cropped_ms_ssim(first, second, kernel=7, sigma=0.8, exponents=(0.33,))
    assert small.tolist() == pytest.approx([0.925942753558, 0.928233455793, 0.872319185844], abs=1e-7)
    first, second = (images.double() for images in pairs(2, 1, 64))
    assert cropped_ms_ssim(first, second).tolist() == pytest.approx([0.791164315364, 0.779012570165], abs=1e-7)


def test_one_scale_is_ssim_of_the_pixels_that_a_whole_window_fits_around() -> None:
    first, second = (images.double() for images in pairs(1, 1, 12))
    offset = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offset**2) / (2 * 1.5**2))
    window = line[:, None] * line / line.sum() ** 2
    values = []
    for row in range(2):
        for column in range(2):
            x, y = (images[0, 0, row : row + 11, column : column + 11] for images in (first, second))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    expected = torch.stack(values).mean() ** 0.33
    found = cropped_ms_ssim(first, second, exponents=(0.33,), data_range=1.0)
    assert float(found) == pytest.approx(float(expected), abs=1e-10)


def test_equal_images_have_similarity_one_and_opposite_ones_none() -> None:
    first, _ = pairs(2, 3, 16)
    torch.testing.assert_close(cropped_ms_ssim(first, first, exponents=(0.33,)), torch.ones(2))
    assert not cropped_ms_ssim(first, 1 - first, exponents=(0.33,), data_range=1.0).any()


def test_it_is_what_the_similarity_of_differences_takes_where_asked() -> None:
    first, second = pairs(3, 2, 8)
    expected = cropped_ms_ssim(first, second, kernel=7, sigma=0.8, exponents=(0.33,), data_range=1.0)
    assert torch.equal(pairwise_similarity(first, second, cropped=True), expected)
    assert float((pairwise_similarity(first, second) - expected).abs().max()) > 1e-3
    images = torch.cat([first, second])
    matrix = similarity_matrix(images, cropped=True)
    assert torch.equal(matrix, matrix.T) and not matrix.diagonal().any()
    torch.testing.assert_close(matrix[[0, 1, 2], [3, 4, 5]], expected)
    assert torch.equal(highest_similarity(images, cropped=True), matrix.amax(dim=1))
