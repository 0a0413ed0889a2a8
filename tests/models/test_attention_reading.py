"""What is read at an attention site leaves the host's forward alone."""

from __future__ import annotations

import torch
from peft import LoraConfig

from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from tests.conformance.families import build, call


def test_an_adapters_dropout_draws_as_if_nobody_watched() -> None:
    unet = build("unet")
    unet.add_adapter(LoraConfig(r=2, lora_dropout=0.5, init_lora_weights=False, target_modules=["to_q", "to_k"]))
    arguments, _ = call("unet", 2)

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        return unet(**arguments).sample, torch.get_rng_state()

    alone, state_alone = forward()
    probe = DenoiserProbe(unet)
    probe.attach()
    observation = Observation(["a", "b"])
    with torch.no_grad(), probe.measure(observation):
        watched, state = forward()
    probe.detach()
    assert observation.token_attention
    assert torch.equal(watched, alone)
    assert torch.equal(state, state_alone)
    assert all(part.training for part in unet.modules()), "dropout is on again"
