"""Guards used in ways that nobody meant: each is refused with what to do instead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.errors import MemtrainError
from memtrain.guard import Guard
from memtrain.signals.denoising_loss import DenoisingLoss
from tests.guard_loops import batch, denoiser

SCHEDULER = DDPMScheduler()


def forward(model: nn.Module, data: dict[str, Any]) -> Tensor:
    prediction: Tensor = model(data["noisy"], data["timesteps"], data["text"], return_dict=False)[0]
    return prediction


def trained(model: nn.Module, guard: Guard, **options: Any) -> Tensor:
    data = batch([0, 1, 2], guard.host.step, SCHEDULER)
    loss = guard.loss(forward(model, data), options.pop("target", data["noise"]), keys=data["key"], **options)
    loss.backward()
    return loss


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"reference": "liu2024"}, "reference='liu2024'"),
        ({"heldout_share": "0.1"}, "heldout_share='0.1'"),
        ({"minimum_visits": 2.5}, "minimum_visits=2.5"),
        ({"minimum_visits": True}, "minimum_visits=True"),
        ({"signals": ["denoising_loss"]}, "`signals` holds a str"),
        ({"mitigations": SampleSkipping()}, "`mitigations` is a SampleSkipping"),
        ({"mitigations": [SampleSkipping]}, "`mitigations` holds the class SampleSkipping"),
        ({"captions": ["a", "b"]}, "captions is a list"),
    ],
)
def test_options_of_another_kind(options: dict[str, Any], found: str, tmp_path: Path) -> None:
    with pytest.raises(MemtrainError, match=found):
        Guard(denoiser(), folder=tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"weights": [1.0, 1.0, 1.0]}, "weights given to loss"),
        ({"target": None}, "target given to loss"),
        ({"caption_dropped": [True]}, "3 rows, and caption_dropped 1"),
    ],
)
def test_arguments_of_another_form(options: dict[str, Any], found: str, tmp_path: Path) -> None:
    model = denoiser()
    guard = Guard(model, folder=tmp_path)
    with pytest.raises(MemtrainError, match=found):
        trained(model, guard, **options)
    guard.close()


def test_a_guard_that_is_over_and_a_batch_within_a_batch(tmp_path: Path) -> None:
    model = denoiser()
    guard = Guard(model, folder=tmp_path)
    data = batch([0, 1], 0, SCHEDULER)
    with pytest.raises(MemtrainError, match="within another"), guard.watch(data), guard.watch(data):
        pass
    guard.close()
    with pytest.raises(MemtrainError, match="guard is over"):
        trained(model, guard)
    with pytest.raises(MemtrainError, match="guard is over"), guard.watch(data):
        pass


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({"heldout_share": 0.3}, "heldout_share=0.1, this run has 0.3"),
        ({"evidence_window": 4}, "evidence_window=12"),
        ({"signals": [DenoisingLoss()]}, "values a visit"),
        ({"reference": False}, "reference='paired'"),
    ],
)
def test_the_state_of_another_watch(other: dict[str, Any], found: str, tmp_path: Path) -> None:
    model = denoiser()
    guard = Guard(model, folder=tmp_path)
    trained(model, guard)
    state = guard.state_dict()
    guard.close()
    resumed = Guard(model, folder=tmp_path, **other)
    with pytest.raises(MemtrainError, match="no state of a guard"):
        resumed.load_state_dict(model.state_dict())
    resumed.load_state_dict(state)
    with pytest.raises(MemtrainError, match=found):
        trained(model, resumed)
    resumed.close()


def frozen(model: nn.Module, folder: Path) -> None:
    trained(model.requires_grad_(False), Guard(model, folder=folder))


def file_for_a_folder(model: nn.Module, folder: Path) -> None:
    (folder / "file").write_text("")
    trained(model, Guard(model, folder=folder / "file"))


@pytest.mark.parametrize(
    ("mistake", "found"), [(frozen, "no trainable parameter"), (file_for_a_folder, "Records cannot be written")]
)
def test_what_shows_with_the_first_batch(
    mistake: Callable[[nn.Module, Path], None], found: str, tmp_path: Path
) -> None:
    with pytest.raises(MemtrainError, match=found):
        mistake(denoiser(), tmp_path)


def test_a_copy_of_the_denoiser_is_not_watched(tmp_path: Path) -> None:
    model = denoiser()
    guard = Guard(model, folder=tmp_path)
    trained(model, guard)
    average = copy.deepcopy(model)
    data = batch([0, 1, 2], 1, SCHEDULER)
    forward(average, data).mean().backward()
    prediction = forward(model, data)
    forward(average, data)
    guard.loss(prediction, data["noise"], keys=data["key"]).backward()
    assert guard.engine.batches_done == 2
    assert torch.isfinite(prediction).all()
    guard.close()


def test_a_scheduler_that_adds_no_noise_is_refused(tmp_path: Path) -> None:
    model = denoiser()
    for unknown in ("ddpm", object()):
        with pytest.raises(MemtrainError, match="cannot add fresh noise"):
            Guard(model, unknown, folder=tmp_path)
    Guard(model, folder=tmp_path).close()
