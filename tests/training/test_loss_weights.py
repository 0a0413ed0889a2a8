"""A weighting is one objective whatever the model predicts: of the same answer it makes the same loss."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.training_utils import compute_loss_weighting_for_sd3

from memtrain.functional.diffusion import min_snr_weight, noisy_and_target
from memtrain.training.loss_weights import timestep_weight

SIGMA = torch.tensor([0.05, 0.3, 0.5, 0.9], dtype=torch.float64)


def losses() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """SNR, and squared errors in each prediction of one wrong clean image, on the path of that prediction."""
    clean, wrong, noise = (torch.randn(4, 100, dtype=torch.float64) for _ in range(3))
    snr = ((1 - SIGMA) / SIGMA).square()
    found = {}
    for kind in ("epsilon", "v_prediction", "flow_prediction"):
        level = SIGMA if kind == "flow_prediction" else snr / (1 + snr)
        noisy, target = noisy_and_target(clean, noise, level, prediction_type=kind)
        signal = (1 - SIGMA if kind == "flow_prediction" else level.sqrt())[:, None]
        spread = (SIGMA if kind == "flow_prediction" else (1 - level).sqrt())[:, None]
        # What a model that believes in the wrong clean image says of the same noisy one.
        answer = noisy_and_target(wrong, (noisy - signal * wrong) / spread, level, prediction_type=kind)[1]
        found[kind] = (answer - target).square().mean(1)
    return snr, found


@pytest.mark.parametrize("weighting", ["min_snr", "debiased", "as_epsilon", "as_velocity"])
def test_a_weighting_is_the_same_for_every_prediction(weighting: str) -> None:
    snr, found = losses()
    weighed = {
        kind: loss
        * (
            min_snr_weight(snr, 5.0, kind)
            if weighting == "min_snr"
            else timestep_weight(weighting, snr, prediction_type=kind)  # type: ignore[arg-type]
        )
        for kind, loss in found.items()
    }
    for loss in weighed.values():
        torch.testing.assert_close(loss, weighed["epsilon"], rtol=1e-5, atol=0)


def test_weights_are_those_of_the_papers() -> None:
    snr, found = losses()
    torch.testing.assert_close(timestep_weight("as_epsilon", snr, prediction_type="epsilon"), torch.ones(4))
    torch.testing.assert_close(
        found["epsilon"] * timestep_weight("as_velocity", snr, prediction_type="epsilon"), found["v_prediction"]
    )
    torch.testing.assert_close(
        timestep_weight("debiased", snr, prediction_type="epsilon"), snr.rsqrt().float(), rtol=1e-5, atol=0
    )
    for weighting in ("sigma_sqrt", "cosmap", "none"):
        expected = compute_loss_weighting_for_sd3(weighting, SIGMA).float()
        ours = timestep_weight(weighting, snr, prediction_type="flow_prediction")  # type: ignore[arg-type]
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)


def test_weights_are_finite_without_noise_and_without_signal() -> None:
    ends = torch.tensor([math.inf, 1e12, 0.0])
    for weighting in ("debiased", "as_epsilon", "as_velocity", "sigma_sqrt", "cosmap"):
        for kind in ("epsilon", "v_prediction", "flow_prediction"):
            assert timestep_weight(weighting, ends, prediction_type=kind).isfinite().all()  # type: ignore[arg-type]
