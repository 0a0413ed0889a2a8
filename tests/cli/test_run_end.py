"""How a run begins and ends: its folder, signals, and an end that was interrupted."""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from memtrain import cli
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.files.lock import locked
from tests.cli.test_training import arguments
from tests.conftest import encoded_image


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments come from the tests, not from pytest's command line; no progress bars."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.fixture(scope="module")
def stopped(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], int]:
    """A run in a folder with somebody's notes that SIGTERM stopped after its third batch; its words and its status."""
    run = tmp_path_factory.mktemp("project") / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    images = run.parent / "images"
    images.mkdir()
    for index in range(40):
        (images / f"{index}.png").write_bytes(encoded_image(index % 25))
        (images / f"{index}.txt").write_text(f"picture number {index}")
    words = arguments(run, images, pipeline_folder, steps=5)
    with pytest.MonkeyPatch.context() as patch:
        end = MemorizationMonitor.on_train_batch_end

        def end_with_signal(self: Any, trainer: Any, *rest: Any) -> None:
            end(self, trainer, *rest)
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(MemorizationMonitor, "on_train_batch_end", end_with_signal)
        patch.setattr(sys, "argv", ["train.py"])
        with pytest.raises(SystemExit) as ended:
            cli.train(words)
    return run, words, int(ended.value.code or 0)


def test_a_signal_keeps_the_work_and_the_rest_is_done_later(
    stopped: tuple[Path, list[str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    run, words, status = stopped
    assert status == 128 + signal.SIGTERM
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert not (run / "pipeline").exists()
    cli.train([*words, "--ckpt_path", "last"])
    assert (run / "pipeline" / "model_index.json").is_file()
    steps = pq.read_table(run / "records" / "steps")["batch"].to_pylist()
    assert sorted(steps) == [batch for batch in range(5) for _ in range(4)], "every row once"
    assert (run / "notes.txt").read_text() == "mine"


def test_an_end_that_was_interrupted_is_made_up_for(stopped: tuple[Path, list[str], int]) -> None:
    run, words, _ = stopped
    before = (run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    shutil.rmtree(run / "pipeline")
    (run / "records" / "evidence.parquet").unlink()
    cli.train([*words, "--ckpt_path", "last"])
    assert (run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    assert (run / "records" / "evidence.parquet").is_file()
    assert (run / "pipeline" / "README.md").is_file()


def test_a_folder_with_a_run_is_left_alone(stopped: tuple[Path, list[str], int]) -> None:
    run, words, _ = stopped
    before = sorted(run.rglob("*"))
    with pytest.raises(SystemExit, match="holds an earlier run") as refused:
        cli.train(words)
    assert f"--trainer.default_root_dir {run}-2" in str(refused.value)
    assert f"--config {run}/config.yaml --ckpt_path last" in str(refused.value)
    assert sorted(run.rglob("*")) == before


def test_two_trainings_do_not_share_a_folder(stopped: tuple[Path, list[str], int]) -> None:
    run, words, _ = stopped
    with locked(run, doing="train"), pytest.raises(SystemExit, match="Another process writes to"):
        cli.train([*words, "--ckpt_path", "last"])


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_runs_configuration_given_with_another_folder_leaves_the_run_alone(
    stopped: tuple[Path, list[str], int],
) -> None:
    run, _, _ = stopped
    checkpoint, other = run / "checkpoints" / "last.ckpt", run.parent / "other"
    before = checkpoint.read_bytes()
    words = ["fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(checkpoint)]
    cli.train([*words, "--trainer.default_root_dir", str(other), "--trainer.max_steps", "10"])
    assert checkpoint.read_bytes() == before
    assert torch.load(other / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 10
