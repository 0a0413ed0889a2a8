"""Resizing, cropping and scaling."""

import numpy as np
import pytest
import torch
from PIL import Image

from memtrain.data.images import to_pixel_values
from memtrain.functional.pixels import to_uint8


def test_range_and_shape():
    image = Image.new("RGB", (4, 4), (255, 0, 51))
    values = to_pixel_values(image, 4)
    assert values.shape == (3, 4, 4)
    assert values.dtype == torch.float32
    assert torch.allclose(values[:, 0, 0], torch.tensor([1.0, -1.0, 51 / 127.5 - 1]))


def test_there_and_back_is_exact():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    assert np.array_equal(to_uint8(to_pixel_values(Image.fromarray(pixels), 7)).permute(1, 2, 0), pixels)


@pytest.mark.parametrize("size", [(30, 10), (10, 30)])
def test_the_middle_of_the_longer_side_is_kept(size):
    image = Image.new("RGB", size, "red")
    middle = (10, 0, 20, 10) if size[0] > size[1] else (0, 10, 10, 20)
    image.paste((0, 0, 255), middle)
    values = to_pixel_values(image, 10)
    assert values.shape == (3, 10, 10)
    assert to_uint8(values)[:, 5, 5].tolist() == [0, 0, 255]
    assert (values[2] == 1).all()


def test_small_images_are_enlarged():
    assert to_pixel_values(Image.new("RGB", (3, 5)), 16).shape == (3, 16, 16)
