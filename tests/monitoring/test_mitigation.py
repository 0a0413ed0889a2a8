"""Combinations of callbacks that cannot work are refused before training starts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch.utils.checkpoint import checkpoint

from memtrain.callbacks.caption_augmentation import CaptionAugmentation
from memtrain.callbacks.loss_skipping import LossSkipping
from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.evidence.flags import Flags
from memtrain.monitoring.mitigation import Effects, Needs
from memtrain.records import read_steps
from tests.callbacks.test_monitor import Foreign, batches, fit


class Penalty(MitigationCallback):
    """Needs the graph of the attention."""

    def needs(self) -> Needs:
        return Needs(attention_graph=True)


class Other(MemorizationMonitor):
    """Lightning itself refuses two of one class."""


def test_a_penalty_with_reentrant_checkpointing(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    module = Foreign(pipeline.unet)
    module.unet.enable_gradient_checkpointing(functools.partial(checkpoint, use_reentrant=True))
    with pytest.raises(ProbeError, match="use_reentrant=False"):
        fit(module, tmp_path, [MemorizationMonitor(reference=False), Penalty()])
    assert not (tmp_path / "records").exists()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())


def test_two_monitors(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="two MemorizationMonitors"):
        fit(Foreign(pipeline.unet), tmp_path, [MemorizationMonitor(reference=False), Other(reference=False)])
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `MemorizationMonitor`"):
        fit(Foreign(pipeline.unet), tmp_path, [MemorizationMonitor(reference=False) for _ in range(2)])


def test_a_mitigation_twice_acts_twice_unless_it_has_a_state(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    class Halved(SampleSkipping):
        def weights(self, observation: Any, flags: Flags) -> torch.Tensor:
            return torch.full_like(flags.score, 0.5)

    monitor = MemorizationMonitor(reference=False)
    fit(Foreign(pipeline.unet), tmp_path, [monitor, Halved(), Halved()], max_epochs=1)
    assert read_steps(tmp_path / "records")["weight"].to_pylist()[-4:] == [0.25] * 4
    noises = [CaptionAugmentation("noise"), CaptionAugmentation("noise", seed=1)]
    fit(Foreign(pipeline.unet), tmp_path, [MemorizationMonitor(reference=False), *noises], max_epochs=1)
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `LossSkipping`"):
        fit(Foreign(pipeline.unet), tmp_path, [MemorizationMonitor(reference=False), LossSkipping(), LossSkipping()])


class Skipping(MitigationCallback):
    """Keeps samples by key."""

    def effects(self) -> Effects:
        return Effects(skips=True)

    def __init__(self, kept: str) -> None:
        self.kept = kept

    def weights(self, observation: Any, flags: Flags) -> torch.Tensor:
        return torch.tensor([float(key in self.kept) for key in observation.keys])


class Lowered(MitigationCallback):
    """Weights that are no skipping."""

    def weights(self, observation: Any, flags: Flags) -> torch.Tensor:
        return torch.tensor([0.5, 1.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("mitigations", "expected"),
    [
        ([Skipping("abd")], [4 / 3, 4 / 3, 0.0, 4 / 3]),
        ([Skipping("abd"), Skipping("acd")], [2.0, 0.0, 0.0, 2.0]),
        ([Skipping("ab"), Skipping("cd")], [0.0] * 4),
        ([Skipping("abd"), Lowered()], [1.0, 2.0, 0.0, 0.0]),
        ([Lowered()], [0.5, 1.0, 1.0, 0.0]),
    ],
)
def test_the_batch_mean_becomes_once_the_mean_over_what_all_keep(
    mitigations: list[Any], expected: list[float], pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    monitor = MemorizationMonitor(reference=False)
    fit(Foreign(pipeline.unet), tmp_path, [monitor, *mitigations], max_epochs=1)
    assert read_steps(tmp_path / "records")["weight"].to_pylist()[-4:] == pytest.approx(expected)


def test_keys_are_found_where_the_monitor_finds_them(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    class Renamed(Foreign):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return {**{name: batch[name] for name in ("latents", "text")}, "name": batch["key"]}

    mitigation = CaptionAugmentation("noise")
    fit(Renamed(pipeline.unet), tmp_path, [MemorizationMonitor(reference=False, key_field="name"), mitigation])
    assert mitigation.key_field == "name"
    assert len(next(iter(batches()))["key"]) == 4
