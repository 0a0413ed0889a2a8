"""What networks say of images, checked and at unit length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from memtrain.errors import DataError
from memtrain.families.descriptors.base import BATCH, described, normalised, stacked

IMAGE = Image.new("RGB", (4, 2), (255, 0, 51))


def test_images_become_squares_in_batches() -> None:
    sizes = []

    def network(images) -> torch.Tensor:
        sizes.append(len(images))
        return stacked(images, side=2).flatten(1).float()

    found = described(network, [IMAGE] * (BATCH + 1))
    assert sizes == [BATCH, 1]
    expected = np.repeat([255, 0, 51], 4) / np.linalg.norm(np.repeat([255, 0, 51], 4))
    np.testing.assert_allclose(found, np.tile(expected, (BATCH + 1, 1)), rtol=1e-6)


def test_pixels_are_normalised_by_channel() -> None:
    found = normalised(stacked([IMAGE], side=1), (0.5, 0, 0.1), (0.5, 1, 0.1))
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 0, 1]))


@pytest.mark.parametrize("answer", [torch.ones(1, 2, 2), torch.ones(2, 3), torch.tensor([[float("nan"), 1]])])
def test_other_answers_are_refused(answer: torch.Tensor) -> None:
    with pytest.raises(DataError, match="for 1 images"):
        described(lambda images: answer, [IMAGE])
