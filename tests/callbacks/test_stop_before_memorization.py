"""Stopping before memorization: which weights a run ends with, where they end up, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.callbacks.stop_before_memorization import StopBeforeMemorization
from memtrain.data.module import TextImageDataModule
from memtrain.errors import ConfigurationError
from memtrain.evidence.calibration import Calibration
from memtrain.training.text_to_image import TextToImageModule
from tests.callbacks.test_monitor import Foreign, fit
from tests.conftest import train

Run = Callable[..., StopBeforeMemorization]


class Dies(Callback):
    """At the eighth step, two after the last checkpoint."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == 8:
            raise RuntimeError("out of power")


@pytest.fixture
def pretrained(pipeline: StableDiffusionPipeline, tmp_path: Path) -> str:
    pipeline.save_pretrained(tmp_path / "pretrained")
    return str(tmp_path / "pretrained")


@pytest.fixture
def run(pretrained: str, write_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of 12 pictures in which, at `onset` steps, the monitor has flagged a quarter of them."""
    path = str(write_folder({f"{letter}.png": letter for letter in "abcdefghijkl"}))

    def start(
        name: str, *, onset: int, stop: int, resume: bool = False, callback: bool = True, dies: bool = False
    ) -> Any:
        module = TextToImageModule(pretrained, learning_rate=1e-3, ema_decay=0.8, seed=0)
        data = TextImageDataModule(path, heldout="edited", resolution=16, batch_size=4, seed=0)
        monitor, stopping = MemorizationMonitor(reference=False), StopBeforeMemorization(0.1, every=3)

        def share(self: Calibration) -> float:
            return 0.25 if monitor.engine.batches_done > onset else 0.0

        monkeypatch.setattr(Calibration, "share_flagged", share)
        callbacks = [monitor, PipelineExport(), *([stopping] if callback else []), *([Dies()] if dies else [])]
        train(tmp_path / name, module, data, callbacks=callbacks, stop=stop, resume=resume)
        return stopping

    return start


def weights(folder: Path) -> dict[str, torch.Tensor]:
    exported: dict[str, torch.Tensor] = UNet2DConditionModel.from_pretrained(folder / "pipeline" / "unet").state_dict()
    return exported


def last(folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_that_is_stopped_ends_with_the_weights_and_their_average_of_an_earlier_step(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopping = run("stopped", onset=10, stop=40)
    assert (stopping.stopped, stopping.restored) == (11, 6), "the newest that are at least `every` steps older"
    assert "ends with the weights of step 6" in caplog.text and "25 % of the training pictures" in caplog.text
    run("short", onset=99, stop=6, callback=False)
    assert_equal(weights(tmp_path / "stopped"), weights(tmp_path / "short"))
    found, expected = last(tmp_path / "stopped"), last(tmp_path / "short")
    assert_equal(found["state_dict"], expected["state_dict"])
    averages = [dict(enumerate(one["ema"]["shadow_params"])) for one in (found, expected)]
    assert_equal(*averages)  # type: ignore[arg-type]
    assert [path.stem for path in (tmp_path / "stopped" / "before_memorization").iterdir()] == ["step-00000006"]


def test_a_run_that_is_stopped_soon_ends_with_the_weights_that_it_began_with(run: Run, tmp_path: Path) -> None:
    assert run("soon", onset=1, stop=40).restored == 0
    assert [path.name for path in (tmp_path / "soon" / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_resumed_run_stops_as_one_that_was_not_interrupted(run: Run, tmp_path: Path) -> None:
    run("whole", onset=10, stop=40)
    with pytest.raises(RuntimeError, match="out of power"):
        run("parts", onset=10, stop=40, dies=True)
    stopping = run("parts", onset=10, stop=40, resume=True)
    assert (stopping.stopped, stopping.restored) == (11, 6)
    assert_equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_flags_of_the_last_batches_are_taken_into_account(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = run("end", onset=99, stop=6)
    assert stopping.stopped is None
    stopping = run("late", onset=5, stop=6)
    assert (stopping.stopped, stopping.restored) == (6, 3)


def test_a_run_that_is_not_stopped_is_left_alone_and_keeps_no_files(run: Run, tmp_path: Path) -> None:
    run("watched", onset=99, stop=7)
    run("plain", onset=99, stop=7, callback=False)
    assert_equal(weights(tmp_path / "watched"), weights(tmp_path / "plain"))
    assert not list((tmp_path / "watched" / "before_memorization").iterdir())


def test_what_it_cannot_work_with_is_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not know the share of memorized pictures"):
        fit(Foreign(copy.deepcopy(pipeline.unet)), tmp_path, [StopBeforeMemorization()])
    averaging = [MemorizationMonitor(reference=False), StopBeforeMemorization(), StochasticWeightAveraging(1e-3)]
    with pytest.raises(ConfigurationError, match="cannot restore weights together with StochasticWeightAveraging"):
        fit(Foreign(copy.deepcopy(pipeline.unet)), tmp_path, averaging)
    with pytest.raises(ConfigurationError, match=r"share=1\.5"):
        StopBeforeMemorization(1.5)
    with pytest.raises(ConfigurationError, match="every=0"):
        StopBeforeMemorization(every=0)
