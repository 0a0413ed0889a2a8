"""Borders: their geometry, and levels that are a function of a name."""

import pytest
import torch

from memtrain.functional.border import border_level, border_mask, latent_border, read_border


def test_levels_are_uniform_and_a_function_of_seed_and_name():
    levels = torch.tensor([border_level(0, f"k{row}") for row in range(4000)])
    assert border_level(0, "a") == border_level(0, "a") != border_level(1, "a")
    assert levels.histc(10, 0, 1).min() > 320
    assert 0 <= levels.min() < levels.max() < 1


def test_the_border_is_all_but_the_centre():
    mask = border_mask(6, 8, 2)
    assert mask.sum() == 6 * 8 - 2 * 4
    assert not mask[2:4, 2:6].any()
    with pytest.raises(ValueError, match="a border of 3 pixels"):
        border_mask(6, 8, 3)


def test_a_latent_cell_that_shows_any_of_the_border_is_painted():
    assert latent_border(64, 64, 8, latent=(8, 8)).sum() == 64 - 36
    assert latent_border(64, 64, 9, latent=(8, 8)).sum() == 64 - 16


def test_the_level_is_read_from_the_border_alone():
    images = torch.zeros(2, 3, 3, 16, 16, dtype=torch.uint8)
    images[:, :, :, border_mask(16, 16, 4)] = 51
    images[:, :, :, 6:10, 6:10] = 200
    torch.testing.assert_close(read_border(images, 4), torch.full((2, 3), 0.2))
