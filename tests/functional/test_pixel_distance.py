"""Squared distances of images, against integers: exact for the pixels that are furthest apart, in every order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memtrain.functional.pixel_distance import centred_pixels, squared_distance, squared_distances, unit_distance


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    """Black, white, and noise."""
    noise = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    noise[0], noise[1] = 0, 255
    return noise


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 20, 17), (3, 64, 64)])
def test_every_pair_is_exact(shape: tuple[int, ...]) -> None:
    """Sizes below, beside and above the length that one product may have."""
    a, b = images(5, *shape), images(7, *shape, seed=1)
    expected = (a.flatten(1).long()[:, None] - b.flatten(1).long()).square().sum(dim=2)
    found = squared_distances(centred_pixels(a), centred_pixels(b))
    assert found.dtype == torch.float64
    assert torch.equal(found.long(), expected) and torch.equal(found, found.round())
    assert torch.equal(squared_distances(centred_pixels(b), centred_pixels(a)), found.T)
    assert torch.equal(squared_distance(centred_pixels(a), centred_pixels(b)[:5]).long(), expected[:, :5].diagonal())
    assert torch.equal(squared_distance(centred_pixels(a)[2], centred_pixels(b)).long(), expected[2])


def test_one_grey_level_of_one_pixel_counts() -> None:
    """Single precision rounds it off: 12288 · 255² needs 30 bits."""
    white = torch.full((2, 3, 64, 64), 255, dtype=torch.uint8)
    white[1, 2, 63, 63] = 254
    found = squared_distances(centred_pixels(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), centred_pixels(white))
    assert (found[0, 0] - found[0, 1]).item() == 255**2 - 254**2


def test_black_and_white_are_one_apart_in_each_pixel() -> None:
    squared = squared_distances(*centred_pixels(images(2, 3, 5, 7)).split(1))
    assert unit_distance(squared).item() == pytest.approx(105**0.5)
