"""The mistakes of docs/mistakes.md: each raises what the table says, and the remedy works."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn

from memtrain.callbacks.caption_augmentation import CaptionAugmentation
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.errors import MemtrainError
from memtrain.guard import Guard
from tests.conformance.families import build, call
from tests.conftest import ROOT
from tests.integration.loops import accelerator

KEYS = ["a", "b"]
ARGUMENTS, _ = call("unet", 2)
TARGET = torch.zeros(2, 4, 8, 8)


def guard(denoiser: nn.Module, folder: Path, **options: Any) -> Guard:
    return Guard(denoiser, folder=folder, **options)


def train(watching: Guard, denoiser: nn.Module, **options: Any) -> None:
    """One step as it should be, but for the options; the guard is closed in any case."""
    with watching:
        watching.loss(denoiser(**ARGUMENTS).sample, TARGET, **{"keys": KEYS, **options}).backward()


def train_watched(
    watching: Guard, denoiser: nn.Module, *, steps: int = 1, loss: Callable[[Guard, Tensor], Tensor], shown: bool = True
) -> None:
    """Steps within `watch`."""
    with watching:
        for _ in range(steps):
            with watching.watch({"key": list(KEYS)}):
                value = loss(watching, denoiser(**ARGUMENTS).sample)
                if shown:
                    watching.before_backward(value)
                value.backward()


def own(scale: float = 1.0) -> Callable[[Guard, Tensor], Tensor]:
    return lambda _, prediction: scale * F.mse_loss(prediction, TARGET)


def handed(watching: Guard, prediction: Tensor) -> Tensor:
    return 3 * watching.loss(prediction, TARGET)


def prepared(folder: Path, *, early: bool) -> None:
    accelerate, unet = accelerator(), build("unet")
    watching = guard(unet, folder, accelerator=accelerate) if early else None
    unet = accelerate.prepare(unet)
    train(watching or guard(unet, folder, accelerator=accelerate), unet)


def restored(folder: Path, *, late: bool) -> None:
    accelerate, unet = accelerator(), build("unet")
    unet, optimizer = accelerate.prepare(unet, torch.optim.AdamW(unet.parameters()))
    if not (folder / "state").exists():
        F.mse_loss(unet(**ARGUMENTS).sample, TARGET).backward()
        optimizer.step()
        accelerate.save_state(str(folder / "state"))
        return restored(folder, late=late)
    watching = None if late else guard(unet, folder)
    accelerate.load_state(str(folder / "state"))
    train(watching or guard(unet, folder, accelerator=accelerate), unet)


def loaded(folder: Path, *, late: bool) -> None:
    unet = build("unet")
    with guard(unet, folder) as before:
        before.loss(unet(**ARGUMENTS).sample, TARGET, keys=KEYS).backward()
        state = before.state_dict()
    watching = guard(unet, folder)
    with watching:
        if late:
            watching.loss(unet(**ARGUMENTS).sample, TARGET, keys=KEYS)
        watching.load_state_dict(state)
        train(watching, unet)


def twice(folder: Path, *, finished: bool) -> None:
    unet = build("unet")
    with guard(unet, folder) as first:
        first.loss(unet(**ARGUMENTS).sample, TARGET, keys=KEYS)
        if finished:
            first.finish()
        train(guard(unet, folder), unet)


def compiled(folder: Path, *, called: bool) -> None:
    torch._dynamo.reset()
    # Of the families, the one that is compiled fastest.
    denoiser, (arguments, _) = torch.compile(build("pixart"), backend="eager"), call("pixart", 2)
    if called:
        denoiser(**arguments)
    try:
        with guard(denoiser, folder, reference=False, heldout_share=0) as watching:
            prediction = denoiser(**arguments).sample.chunk(2, dim=1)[0]
            watching.loss(prediction, TARGET, keys=KEYS).backward()
    finally:
        torch._dynamo.reset()


def own_loss(folder: Path) -> None:
    unet = build("unet")
    with guard(unet, folder):
        F.mse_loss(unet(**ARGUMENTS).sample, TARGET).backward()


def another_denoiser(folder: Path) -> None:
    unet = build("unet")
    with guard(build("unet"), folder):
        F.mse_loss(unet(**ARGUMENTS).sample, TARGET).backward()


def late_prediction(folder: Path) -> None:
    unet = build("unet")
    with guard(unet, folder) as watching:
        first = unet(**ARGUMENTS).sample
        watching.loss(first, TARGET, keys=KEYS)
        unet(**ARGUMENTS)
        watching.loss(first, TARGET, keys=KEYS)


def plain(folder: Path, *, guarded: dict[str, Any] | None = None, **options: Any) -> None:
    unet = build("unet")
    train(guard(unet, folder, **(guarded or {})), unet, **options)


def watched(folder: Path, *, guarded: dict[str, Any] | None = None, **options: Any) -> None:
    unet = build("unet")
    train_watched(guard(unet, folder, reference=False, **(guarded or {})), unet, **{"loss": own(), **options})


def trainer(folder: Path, *, monitored: bool) -> None:
    callbacks = [SampleSkipping(), *([MemorizationMonitor(reference=False)] if monitored else [])]
    made = Trainer(default_root_dir=folder, accelerator="cpu", logger=False, callbacks=callbacks)
    callbacks[0].setup(made, nn.Module(), "fit")  # type: ignore[arg-type]


def noise() -> dict[str, Any]:
    return {"mitigations": [CaptionAugmentation(kind="noise", samples="all")]}


Act = Callable[[Path], None]
MISTAKES: dict[str, tuple[Act, Act]] = {
    "The guard got a module without a denoiser.": (
        lambda path: train(guard(nn.Linear(2, 2), path), build("unet")),
        plain,
    ),
    "The guard was made before `prepare()`.": (
        lambda path: prepared(path, early=True),
        lambda path: prepared(path, early=False),
    ),
    "The guard was made after `load_state()`.": (
        lambda path: restored(path, late=True),
        lambda path: restored(path, late=False),
    ),
    "The guard's own state was loaded during training.": (
        lambda path: loaded(path, late=True),
        lambda path: loaded(path, late=False),
    ),
    "There are two guards.": (
        lambda path: twice(path, finished=False),
        lambda path: twice(path, finished=True),
    ),
    "The denoiser was compiled and called before the guard.": (
        lambda path: compiled(path, called=True),
        lambda path: compiled(path, called=False),
    ),
    "No loss was handed over.": (own_loss, lambda path: plain(path, weights=torch.tensor([0.5, 2.0]))),
    "The guard watches another denoiser than the loop trains.": (another_denoiser, plain),
    "The prediction comes from another forward.": (late_prediction, plain),
    "Samples have no names.": (lambda path: plain(path, keys=None), plain),
    "There are not as many names as samples.": (lambda path: plain(path, keys=["a"]), plain),
    "A name is empty, such as the file name of an image from a Parquet file.": (
        lambda path: plain(path, keys=["", ""]),
        plain,
    ),
    "The criterion already took the mean.": (
        lambda path: plain(path, criterion=F.huber_loss),
        lambda path: plain(path, criterion="huber"),
    ),
    "The loop's own loss, shown within `watch`, is no mean of squared errors.": (
        lambda path: watched(path, steps=9, loss=own(3.0)),
        lambda path: watched(path, steps=9, loss=handed),
    ),
    "The loop's own loss within `watch` was not shown.": (lambda path: watched(path, shown=False), watched),
    "A mitigation changes batches, and does not get to see them.": (
        lambda path: plain(path, guarded=noise()),
        lambda path: watched(path, guarded=noise()),
    ),
    "So much is held out that little is left to train on.": (
        lambda path: plain(path, guarded={"heldout_share": 0.9}),
        lambda path: plain(path, guarded={"heldout_share": 0.1}),
    ),
    "An option is misspelt.": (
        lambda path: plain(path, guarded={"refrence": False}),
        lambda path: plain(path, guarded={"reference": False}),
    ),
    "A mitigation is among the trainer's callbacks without a monitor.": (
        lambda path: trainer(path, monitored=False),
        lambda path: trainer(path, monitored=True),
    ),
}
"""The first column of the table; what makes the mistake; and what does as the last column says."""


def table() -> dict[str, str]:
    """Mistakes and what their errors say, of the docs."""
    text = (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| ([^|]+\.) \| `([^|]+)` \| [^|]+ \|$", text, re.MULTILINE))


def test_every_row_of_the_table_is_tried() -> None:
    assert table().keys() == MISTAKES.keys()


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_as_the_table_says_and_the_remedy_works(mistake: str, tmp_path: Path) -> None:
    wrong, right = MISTAKES[mistake]
    with pytest.raises(MemtrainError, match=re.escape(table()[mistake])):
        wrong(tmp_path)
    right(tmp_path)
