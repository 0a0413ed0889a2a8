"""Huber losses by their closed forms, thresholds at the ends of their schedules."""

from __future__ import annotations

import pytest
import torch

from memtrain.training.criteria import elementwise, huber_threshold


def test_huber_losses_are_the_closed_forms() -> None:
    errors = torch.tensor([[0.0, 3.0, -4.0], [1e-4, 30.0, -40.0]], dtype=torch.float64)
    c = torch.tensor([4.0, 3.0], dtype=torch.float64)
    bent = (errors.square() + c[:, None] ** 2).sqrt() - c[:, None]
    zero = torch.zeros_like(errors)
    expected = {"mse": errors**2, "l1": errors.abs(), "huber": 2 * c[:, None] * bent, "smooth_l1": 2 * bent}
    for criterion, values in expected.items():
        found = elementwise(criterion, errors, zero, threshold=c)  # type: ignore[arg-type]
        torch.testing.assert_close(found, values.float(), atol=0, rtol=1e-5)


def test_small_errors_are_not_lost_beside_a_large_threshold() -> None:
    found = elementwise("huber", torch.tensor([[1e-3]]), torch.zeros(1, 1), threshold=torch.tensor([10.0]))
    assert found.item() == pytest.approx(1e-6, rel=1e-4)


def test_thresholds_at_both_ends() -> None:
    snr, share = torch.tensor([1e12, 1.0, 1e-12]), torch.tensor([0.0, 0.5, 1.0])
    found = {name: huber_threshold(name, 0.04, snr=snr, share=share) for name in ("constant", "exponential", "snr")}  # type: ignore[arg-type]
    torch.testing.assert_close(found["constant"], torch.full((3,), 0.04))
    torch.testing.assert_close(found["exponential"], torch.tensor([1.0, 0.2, 0.04]))
    torch.testing.assert_close(found["snr"], torch.tensor([1.0, 0.96 / 4 + 0.04, 0.04]), atol=1e-5, rtol=0)
