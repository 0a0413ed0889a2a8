"""Training that loses nothing: whole checkpoints, whoever asks for them, and an end when its numbers are none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn
from torch.utils.data import DataLoader

from memtrain.callbacks.checkpoint_file import previous_of
from memtrain.callbacks.checkpoint_io import WholeCheckpointIO
from memtrain.callbacks.safe_training import SafeTraining
from memtrain.errors import TrainingError


class Line(LightningModule):
    """A line whose loss, or gradient, is NaN at one batch."""

    def __init__(self, *, loss_at: int = -1, gradient_at: int = -1, skipped: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.loss_at, self.gradient_at, self.skipped = loss_at, gradient_at, skipped

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch["x"]).square().mean()
        if self.trainer.fit_loop.total_batch_idx == self.loss_at:
            return loss * float("nan")
        if self.trainer.fit_loop.total_batch_idx == self.gradient_at:
            # The root's slope at 0 is infinite, and its value is not.
            return loss + (self.layer.weight.sum() * 0).sqrt()
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.skipped:
            for value in self.parameters():
                value.grad = torch.nan_to_num(value.grad)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Exported(Callback):
    """What an export at the end would do."""

    def __init__(self, *, killed: bool = False) -> None:
        self.done, self.killed = False, killed

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        if self.killed:
            raise RuntimeError("killed")
        self.done = True


def samples() -> DataLoader[Any]:
    data: Any = [{"x": torch.tensor([1.0, index]), "key": f"{index}.png"} for index in range(4)]
    return DataLoader(data, batch_size=2)


def fit(
    folder: Path, module: Line, *, steps: int = 12, every: int = 100, resume: bool = False, killed: bool = False
) -> Exported:
    exported = Exported(killed=killed)
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[
            exported,
            SafeTraining(every=every),
            ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=2),
        ],
    )
    trainer.fit(module, samples(), ckpt_path="last" if resume else None)
    return exported


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"loss_at": 4}, "The loss became NaN or infinite first, in batch 4"),
        ({"gradient_at": 4}, "The gradient became NaN or infinite first, in batch 4, where the loss was finite"),
    ],
)
def test_nan_stops_training_before_the_checkpoint_is_overwritten(
    fault: dict[str, int], said: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError) as found:
        fit(tmp_path, Line(**fault))
    assert said in str(found.value) and "'0.png', '1.png'" in str(found.value)
    assert f"--ckpt_path {tmp_path / 'last.ckpt'}" in str(found.value)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 4
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_nan_in_the_last_step_is_not_exported(tmp_path: Path) -> None:
    module, seen = Line(loss_at=2), []
    with pytest.raises(TrainingError):
        seen.append(fit(tmp_path, module, steps=3))
    assert not seen


def test_a_step_that_the_host_leaves_harmless_is_no_fault(tmp_path: Path) -> None:
    assert fit(tmp_path, Line(gradient_at=3, skipped=True), every=1).done


def test_it_looks_every_so_many_batches(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="now at step 1"):
        fit(tmp_path, Line(loss_at=0), every=1)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_checkpoints_of_lightning_are_written_whole_and_a_torn_one_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight = Line()
    torch.manual_seed(1)
    straight.layer.reset_parameters()
    start = {name: value.clone() for name, value in straight.state_dict().items()}
    fit(tmp_path / "straight", straight, steps=8)
    broken = Line()
    broken.load_state_dict(start)
    fit(tmp_path / "broken", broken, steps=4)
    last = tmp_path / "broken" / "last.ckpt"
    assert previous_of(last).is_file()
    last.write_bytes(last.read_bytes()[:500])
    again = Line()
    with caplog.at_level(logging.WARNING):
        fit(tmp_path / "broken", again, steps=8, resume=True)
    assert "is torn" in caplog.text
    assert again.trainer.global_step == 8
    for name, value in straight.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_a_way_of_writing_of_ones_own_stays(tmp_path: Path) -> None:
    class Own(TorchCheckpointIO):
        pass

    given = Own()
    trainer = Trainer(logger=False, accelerator="cpu", plugins=[given], enable_checkpointing=False)
    SafeTraining().setup(trainer, Line(), "fit")
    assert trainer.strategy.checkpoint_io is given
    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    SafeTraining().setup(trainer, Line(), "fit")
    assert isinstance(trainer.strategy.checkpoint_io, WholeCheckpointIO)


def test_what_was_killed_between_its_last_step_and_its_end_comes_to_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, Line(), steps=4, killed=True)
    with caplog.at_level(logging.WARNING):
        assert fit(tmp_path, Line(), steps=4, resume=True).done
    assert "but its end was missing" in caplog.text
    assert not fit(tmp_path, Line(), steps=4, resume=True).done, "once"
