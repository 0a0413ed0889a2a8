"""The norm of the text-conditional noise in closed form."""

from __future__ import annotations

import torch

from memtrain.functional.guidance import guidance_norm


def test_norm_of_a_constant_difference() -> None:
    """A difference of c in each of n elements has norm c √n, per sample."""
    unconditional = torch.randn(3, 4, 5, 6)
    size = torch.tensor([0.0, 1.0, 2.0])
    norms = guidance_norm(unconditional + size.view(3, 1, 1, 1), unconditional)
    torch.testing.assert_close(norms, size * (4 * 5 * 6) ** 0.5)


def test_half_precision_is_summed_in_single() -> None:
    """Half-precision predictions whose squares overflow fp16 give a finite norm."""
    big = torch.full((2, 4, 64, 64), 300.0, dtype=torch.float16)
    norms = guidance_norm(big, torch.zeros_like(big))
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, torch.full((2,), 300.0 * 128))
