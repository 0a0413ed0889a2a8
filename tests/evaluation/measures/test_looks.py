"""Several own images: how much nearer their number comes to a generation, and the threshold that allows for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memtrain.evaluation.measures.looks import gain_of_looks, thresholds_beyond_looks
from memtrain.evaluation.measures.replication import replication, reproduction_threshold


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Random images."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def flat(*levels: int) -> Tensor:
    """Images of one grey level each."""
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()


def test_gain_in_closed_form() -> None:
    """Own images at 0, 40 and 200; generations at 100 (60 of 100 away) and at 10 (the first is nearest)."""
    gain = gain_of_looks(flat(100, 10)[:, None], flat(0)[0], flat(40, 200))
    torch.testing.assert_close(gain, torch.tensor([0.6, 1.0], dtype=torch.float64))
    lowest = gain_of_looks(flat(100, 10)[None], flat(0)[0], flat(40, 200))
    torch.testing.assert_close(lowest, torch.tensor([0.6], dtype=torch.float64))


def test_light_edits_of_one_picture_are_hardly_more_than_one_look() -> None:
    """Two hundred light edits cost next to nothing, two hundred different pictures much; one own image nothing."""
    held, others = noise(40, 3, 8, 8, seed=1), noise(60, 3, 8, 8, seed=2)
    first = noise(1, 3, 8, 8, seed=3)
    edits = (first.int() + noise(200, 3, 8, 8, seed=4).int() // 32).clamp(max=255).to(torch.uint8)
    different = noise(200, 3, 8, 8, seed=5)
    training = torch.cat([others, first, edits, different])
    family = torch.cat([torch.arange(60), torch.full((201,), 60), 61 + torch.arange(200)])
    own = torch.cat([first, first, others[:1], held])
    index = torch.tensor([60, 60, 0, *[-1] * 40])
    shared = [[], list(range(261, 461)), [], *[[]] * 40]
    generated = torch.cat([first, first, others[:1], noise(40, 3, 8, 8, seed=6)])[:, None]
    found = replication(generated, own, training=training, own_index=index, family=family, shared=shared)
    assert found.looks is not None
    assert found.looks[:3].tolist() == [201, 401, 1]
    calibrating = index < 0
    threshold = reproduction_threshold(found.best[calibrating], 0.05)
    thresholds, rates = thresholds_beyond_looks(
        found, generated, own=own, training=training, calibrating=calibrating, threshold=threshold, rate=0.05
    )
    assert 0.97 * threshold < thresholds[0] < threshold
    assert thresholds[1] < 0.95 * threshold
    assert thresholds[2] == pytest.approx(threshold)
    assert rates[:3].tolist() == pytest.approx([0.1, 0.1, 0.05])
    assert bool((found.best[:3] < thresholds[:3]).all()), "copies are below"
