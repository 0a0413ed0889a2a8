"""What the objective makes of noise, errors and batches, by closed forms; and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memtrain.errors import ConfigurationError, DataError
from memtrain.training.objective import Objective, loss_mask

LATENTS = torch.zeros(3, 4, 6, 6)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_noise_offset_moves_whole_channels() -> None:
    plain, moved = (Objective(noise_offset=offset).noise(LATENTS, generator()) for offset in (0.0, 2.0))
    offset = (moved - plain) / 2
    assert torch.equal(plain, torch.randn(LATENTS.shape, generator=generator()))
    torch.testing.assert_close(offset, offset[:, :, :1, :1].expand_as(offset))
    assert 0.5 < offset[:, :, 0, 0].std() < 1.5


def test_input_perturbation_shows_more_noise_by_its_strength() -> None:
    noise = torch.randn(64, 4, 16, 16)
    assert Objective().shown_noise(noise, generator()) is noise
    more = Objective(input_perturbation=0.5).shown_noise(noise, generator()) - noise
    assert more.std().item() == pytest.approx(0.5, rel=0.02)
    assert abs((more * noise).mean()) < 0.01, "independent of the noise that is asked for"


def test_a_masked_loss_is_the_mean_over_what_is_shown() -> None:
    prediction, target = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    mask = torch.zeros(2, 1, 6, 6)
    mask[0, :, :2], mask[1, :, :, 3:] = 1.0, 0.5
    errors = (prediction - target).square()
    expected = torch.stack([errors[0, :, :2].mean(), errors[1, :, :, 3:].mean()])
    torch.testing.assert_close(Objective().sample_loss(prediction, target, mask=mask), expected)
    sizes = errors.sqrt()
    trained = Objective(criterion="l1").trained_loss(
        prediction, target, mask=mask, snr=torch.ones(2), share=torch.ones(2)
    )
    torch.testing.assert_close(trained, torch.stack([sizes[0, :, :2].mean(), sizes[1, :, :, 3:].mean()]))


def test_weights_of_samples_are_those_of_the_batch() -> None:
    objective, like = Objective(), torch.ones(3)
    assert objective.batch_weight({"weight": torch.tensor([1.0, 2.0, 4.0])}, like).tolist() == [1.0, 2.0, 4.0]
    assert objective.batch_weight({}, like).tolist() == objective.batch_weight(None, like).tolist() == [1.0] * 3
    with pytest.raises(DataError, match=r"`weight` of the batch has the shape \(2,\) for 3 samples"):
        objective.batch_weight({"weight": torch.ones(2)}, like)


def test_weights_that_leave_nothing_to_read_are_none() -> None:
    flow = Objective(min_snr_gamma=5.0).weight(torch.tensor([1e12, 1.0]), "flow_prediction")
    assert flow.tolist() == [0.0, 0.25]


def masks(**changes: Any) -> dict[str, Any]:
    return {"loss_mask": torch.ones(3, 1, 6, 6), "key": ["a", "b", "c"], **changes}


def test_masks_that_show_nothing_are_refused_by_name() -> None:
    assert loss_mask({}, LATENTS) is None
    assert loss_mask(masks(), LATENTS) is not None
    empty = torch.ones(3, 1, 6, 6)
    empty[1] = 0
    with pytest.raises(DataError, match="loss masks of 1 samples are empty or negative, first b"):
        loss_mask(masks(loss_mask=empty), LATENTS)
    with pytest.raises(DataError, match=r"shape \(3, 4, 6, 6\)\n.*\(3, 1, 6, 6\): one channel"):
        loss_mask(masks(loss_mask=torch.ones(3, 4, 6, 6)), LATENTS)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"min_snr_gamma": 0.0}, "min_snr_gamma=0.0"),
        ({"huber_c": -1.0}, "huber_c=-1.0"),
        ({"input_perturbation": -0.1}, "input_perturbation=-0.1"),
        ({"min_snr_gamma": 5.0, "weighting": "debiased"}, "both weight timesteps"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigurationError, match=found):
        Objective(**options).check("epsilon", torch.ones(10))


def test_weightings_of_flows_are_for_flows() -> None:
    snr = torch.ones(10)
    Objective(weighting="cosmap").check("flow_prediction", snr)
    with pytest.raises(ConfigurationError, match=r"'cosmap', but the model predicts epsilon\n.*flow matching"):
        Objective(weighting="cosmap").check("epsilon", snr)
