"""A training that is told to stop: before it begins, between batches, in a validation, at its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from memtrain.callbacks.base import Callback
from memtrain.callbacks.stop_on_signal import SECONDS, StopOnSignal, Stopped, Turns


@pytest.fixture(autouse=True)
def signals_are_given_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    after = {number: signal.getsignal(number) for number in signal.valid_signals()}
    for number, handler in before.items():
        if after[number] != handler:
            signal.signal(number, handler)
    after.pop(signal.SIGINT), before.pop(signal.SIGINT)  # Lightning ignores it after an interrupt
    assert after == before


class Line(LightningModule):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return (self.weight - batch).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self.weight.mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Told(Callback):
    """Tells its own process at a hook, as Slurm would."""

    def __init__(self, hook: str, at: int = 0, *numbers: int) -> None:
        self.seen: list[str] = []
        self.told = False
        for name in ("on_fit_start", "on_train_batch_start", "on_validation_batch_end", "on_train_end", "on_fit_end"):

            def receive(trainer: Any, *rest: Any, name: str = name) -> None:
                if name == hook and trainer.global_step == at and not self.told:
                    self.told = True
                    for number in numbers or (signal.SIGUSR1,):
                        os.kill(os.getpid(), number)
                self.seen.append(name)

            setattr(self, name, receive)


def fit(folder: Path, told: Callback | None = None, *, stop: StopOnSignal | None = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=6,
        val_check_interval=2,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[one for one in (told, stop or StopOnSignal()) if one is not None],
        **options,
    )
    data = DataLoader(torch.arange(6.0), batch_size=1)
    trainer.fit(Line(), data, data)
    return trainer


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize(
    ("hook", "at", "stops_at"),
    [("on_train_batch_start", 3, 4), ("on_validation_batch_end", 2, 3)],
)
def test_it_stops_after_the_batch_or_the_one_after_the_validation(
    tmp_path: Path, number: signal.Signals, hook: str, at: int, stops_at: int
) -> None:
    told = Told(hook, at, number)
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, told)
    assert stopped.value.code == 128 + number
    assert torch.load(stopped.value.checkpoint, weights_only=True)["global_step"] == stops_at
    assert told.seen.count("on_validation_batch_end") == 6 * (stops_at // 2 - (stops_at % 2 == 0)), "whole ones"


def test_before_the_first_batch_it_ends_at_once(tmp_path: Path) -> None:
    told = Told("on_fit_start")
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, told)
    assert isinstance(ended.value.__context__, KeyboardInterrupt)
    assert ended.value.__context__.args == (signal.SIGUSR1,)
    assert "on_train_batch_start" not in told.seen


@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_end_of_a_training_is_finished(
    tmp_path: Path, hook: str, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = fit(tmp_path, Told(hook, 6, number, signal.SIGUSR1))
    assert trainer.state.finished
    assert f"{number.name} came after the last batch" in caplog.text


def test_a_second_signal_ends_it_at_once_unless_it_is_the_time_limits(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, Told("on_train_batch_start", 3, signal.SIGUSR1, signal.SIGTERM))
    assert not isinstance(ended.value, Stopped)
    with pytest.raises(Stopped):
        fit(tmp_path / "other", Told("on_train_batch_start", 3, signal.SIGUSR1, signal.SIGUSR1))


@pytest.mark.parametrize(("own", "in_charge"), [(False, "memtrain"), (True, "lightning")])
def test_one_of_the_two_requeues(own: bool, in_charge: str) -> None:
    environment = object.__new__(SLURMEnvironment)
    environment.auto_requeue = True
    connector = SimpleNamespace(cluster_environment=environment, _cluster_environment_flag=environment if own else None)
    stop = StopOnSignal()
    stop.setup(SimpleNamespace(_accelerator_connector=connector), None, "fit")  # type: ignore[arg-type]
    assert environment.auto_requeue is (in_charge == "lightning")
    taken = signal.getsignal(signal.SIGUSR1) == stop._receive
    assert taken is (in_charge == "memtrain")
    stop._give_back()


@pytest.mark.parametrize(("seconds", "batches"), [(0.0, 50), (1.0, 20), (SECONDS / 7.5, 7), (1000.0, 1)])
def test_processes_exchange_by_time_and_at_least_as_often_as_they_log(seconds: float, batches: int) -> None:
    turns = Turns(most=50)
    assert turns.seconds_of_a_batch() is not None, "after the first batch"
    turns.agreed(seconds)
    assert [turns.seconds_of_a_batch() is None for _ in range(batches)] == [True] * (batches - 1) + [False]


def test_a_worker_of_the_process_goes_on(tmp_path: Path) -> None:
    stop = StopOnSignal()
    stop._own_process = os.getpid() + 1
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        stop._receive(number, None)
    assert stop._received is None
    assert 0 < signal.alarm(0) <= 60, "SIGTERM alone, and not for ever"
