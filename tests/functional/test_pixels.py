"""Pixel values and uint8 images."""

from __future__ import annotations

import pytest
import torch

from memtrain.functional.pixels import from_uint8, to_uint8


def test_to_uint8_rounds_and_clamps() -> None:
    """-1, 0 and 1 are 0, 128 (127.5 rounded to even) and 255."""
    assert to_uint8(torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 2.0])).tolist() == [0, 0, 128, 255, 255, 255]
    assert to_uint8(torch.zeros(2, 1, requires_grad=True).half()).dtype == torch.uint8


def test_there_and_back_is_exact_and_the_images_stay_what_they_were() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(4, 64)
    values = from_uint8(images)
    assert (values.dtype, float(values.min()), float(values.max())) == (torch.float32, -1.0, 1.0)
    assert torch.equal(to_uint8(values), images)
    assert images[0, 1] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_are_computed_in_the_type_that_is_asked_for(dtype: torch.dtype) -> None:
    images = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(from_uint8(images, dtype=dtype), images.to(dtype) / 127.5 - 1)
