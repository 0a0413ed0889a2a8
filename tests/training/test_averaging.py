"""The average on the CPU is the one on the device, to the last bit."""

from __future__ import annotations

import pytest
import torch
from diffusers.training_utils import EMAModel

from memtrain.training import averaging
from memtrain.training.averaging import OffloadedAverage


def test_it_is_the_average_of_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In groups of any size, over the warm-up of the decay, and after a checkpoint."""
    monkeypatch.setattr(averaging, "AT_ONCE", 40)
    parameters = [torch.nn.Parameter(torch.randn(size)) for size in (3, 30, 17, 50)]
    parameters[1].requires_grad_(False)
    ours, theirs = OffloadedAverage(parameters, decay=0.9), EMAModel(parameters, decay=0.9, foreach=True)
    for step in range(20):
        for parameter in parameters:
            parameter.data += torch.randn_like(parameter)
        ours.step(parameters)
        theirs.step(parameters)
        if step == 10:
            state = ours.state_dict()
            ours = OffloadedAverage(parameters, decay=0.9)
            ours.load_state_dict(state)
    assert ours.optimization_step == theirs.optimization_step == 20
    for a, b in zip(ours.shadow_params, theirs.shadow_params, strict=True):
        assert torch.equal(a, b)


def test_it_stays_on_the_cpu() -> None:
    average = OffloadedAverage([torch.nn.Parameter(torch.zeros(3))], decay=0.9)
    average.to("meta")
    assert average.shadow_params[0].device.type == "cpu"
