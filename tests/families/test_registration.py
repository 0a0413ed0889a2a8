"""Known motions are found again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ImageOps

from memtrain.families.looks import thumbnail
from memtrain.families.registration import Placement, coarse_placements, luminance, refine, scaled_spectra, spectra
from tests.families.pictures import clip_art

CAR = next(image for image, caption in clip_art() if "sportcar" in caption)


def pixels(image) -> torch.Tensor:
    return torch.from_numpy(thumbnail(image).copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("scale", "turn", "x", "y"), [(1, 0, 0.2, -0.1), (0.8, 0, 0, 0), (1.2, 0.06, -0.1, 0.1)])
def test_a_known_motion_is_found(mirrored: bool, scale: float, turn: float, x: float, y: float) -> None:
    b = pixels(CAR)
    truth = Placement(torch.tensor([[scale, scale, turn, x, y]]), torch.tensor([mirrored]))
    a = truth.place(b)
    _, start = coarse_placements(spectra(a), scaled_spectra(b))
    found, explained = refine(luminance(a).expand(2, -1, -1, -1), luminance(b).expand(2, -1, -1, -1), start, steps=12)
    best = int(explained.argmax())
    assert explained[best] > 0.98
    assert bool(found.mirrored[best]) == mirrored
    np.testing.assert_allclose(found.motion[best, :3], [scale, scale, turn], atol=0.03)
    np.testing.assert_allclose(found.motion[best, 3:], [x, y], atol=0.03)


def test_what_b_does_not_cover_counts_nothing() -> None:
    half = Placement(torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0]]), torch.tensor([False]))
    assert half.cover()[0, 1:-1, 1:15].mean() == 1
    assert half.cover()[0, :, 17:].sum() == 0


def test_a_mirror_needs_no_motion() -> None:
    a, b = pixels(CAR), pixels(ImageOps.mirror(CAR))
    placement = Placement(torch.tensor([[1.0, 1, 0, 0, 0]]), torch.tensor([True]))
    torch.testing.assert_close(placement.place(b), a, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_inverse_undoes_a_placement(mirrored: bool) -> None:
    there = Placement(torch.tensor([[0.8, 0.8, 0.1, 0.2, -0.3]]), torch.tensor([mirrored]))
    matrices = [torch.cat([part.matrices()[0], torch.tensor([[0.0, 0, 1]])]) for part in (there, there.inverse())]
    torch.testing.assert_close(matrices[0] @ matrices[1], torch.eye(3), atol=1e-6, rtol=0)
