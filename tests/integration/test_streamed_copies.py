"""One pass over streamed data: pictures and captions that come again under other keys are flagged, and nobody else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.families.online import OnlineFamilies
from memtrain.families.table import Families
from memtrain.guard import Guard
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from tests.conftest import ROOT
from tests.integration.lightning_runs import from_dict, mean_loss, module_of
from tests.integration.streamed_copies import (
    AGAIN,
    CAPTIONS,
    COPIES,
    OTHERS,
    Shared,
    Stream,
    families_of,
    guarded,
    index_of,
)

FEW = 4
"""Of 200 others, that may be flagged: 1 % is asked for, and the bulk promises less."""


def require_found(flagged: dict[str, int], stream: Stream) -> None:
    assert stream.again <= flagged.keys(), sorted(stream.again - flagged.keys())[:5]
    assert len(flagged.keys() - stream.again) <= FEW


def monitored(folder: Path, stream: Stream, **settings: Any) -> MemorizationMonitor:
    monitor = MemorizationMonitor(
        reference=False, minimum_visits=6, settings=WatchSettings(calibrate_every=4, **settings)
    )
    trainer = lightning.pytorch.Trainer(
        default_root_dir=folder,
        callbacks=[monitor],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
    )
    torch.manual_seed(0)
    module = module_of(lightning.pytorch, mean_loss, unpack=from_dict)
    # Slow enough that the model stays as it is: what is low is the noise of what comes again.
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=1e-4)
    trainer.fit(module, stream.loader())
    return monitor


@pytest.mark.parametrize("shared", ["picture", "caption"])
def test_lightning_over_a_stream(shared: Shared, tmp_path: Path) -> None:
    stream = Stream(shared, captions=True)
    monitor = monitored(tmp_path, stream)
    require_found(monitor.calibration.first_flagged, stream)
    levels = {monitor.calibration.levels.flagged_by[key] for key in stream.again}
    assert levels == {shared}
    table = Families.read(tmp_path / "records" / "families.parquet")
    assert len(set(table.pictures.values())) == (AGAIN if shared == "picture" else 0)
    assert len(set(table.captions.values())) == (CAPTIONS if shared == "caption" else 0)


def test_without_the_index_nothing_is_found(tmp_path: Path) -> None:
    monitor = monitored(tmp_path, Stream("picture"), online_families=False)
    assert not monitor.calibration.first_flagged
    assert not (tmp_path / "records" / "families.parquet").exists()


@pytest.mark.parametrize("shared", ["picture", "caption"])
def test_a_loop_that_shows_the_guard_nothing_but_its_loss(shared: Shared, tmp_path: Path) -> None:
    """Clean latents are recovered, captions are known by their embeddings."""
    stream = Stream(shared)
    guard, _ = guarded(tmp_path, stream)
    require_found(guard.calibration.first_flagged, stream)
    assert guard.calibration.first_flagged.keys() == read_flagged(tmp_path)


def test_embeddings_of_a_text_encoder_that_is_trained_along_name_no_captions(tmp_path: Path) -> None:
    guard, _ = guarded(tmp_path, Stream("caption"), trained_text=True)
    assert not guard.calibration.first_flagged
    names = families_of(guard, Stream("caption"))["caption"]
    assert all(name == key for key, name in names.items())


def test_copies_of_a_picture_that_is_held_out_by_weight_are_not_trained_on(tmp_path: Path) -> None:
    stream = Stream("picture")
    guard, _ = guarded(tmp_path, stream, heldout_share=0.3)
    names, held_out = families_of(guard, stream)["picture"], guard.engine.running[1].heldout_keys
    held = {key for key in stream.again if key in held_out}
    assert held, "else nothing is shown"
    assert {names[key] for key in held} == {name for name in names.values() if name in held and names[name] == name}
    assert len(held) % COPIES == 0, "whole families"
    steps = read_steps(tmp_path / "records").to_pylist()
    first = {name: min(row["batch"] for row in steps if row["key"] == name) for name in {names[key] for key in held}}
    known = [row for row in steps if row["key"] in held and row["batch"] // 4 > first[names[row["key"]]] // 4]
    assert len(known) > 0.8 * len(held)
    assert {row["weight"] for row in known} == {0.0}
    others = [row["weight"] for row in steps if names[row["key"]] not in held_out]
    assert sum(others) > 0.6 * len(others), "their own hash holds copies of others out once, at most"


def test_a_run_goes_on_from_a_saved_state_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    stream = Stream("picture")
    whole, _ = guarded(tmp_path / "whole", stream)
    _, state = guarded(tmp_path / "cut", stream, cut=18)
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed, _ = guarded(tmp_path / "cut", stream, state=state)
    assert families_of(resumed, stream) == families_of(whole, stream)
    assert resumed.calibration.first_flagged.keys() == whole.calibration.first_flagged.keys()


@pytest.mark.slow
def test_two_processes_have_the_same_families_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integration.streamed_copies", str(tmp_path)],
            cwd=ROOT,
            env={
                **os.environ,
                **{"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second
    alone, _ = guarded(tmp_path / "alone", Stream("picture"))
    assert {name: first[name] for name in ("picture", "caption")} == families_of(alone, Stream("picture"))
    require_found(first["flagged"], Stream("picture"))


def test_the_index_is_there_where_the_data_do_not_speak_of_families(tmp_path: Path) -> None:
    class Data:
        families = None

    guards: list[Guard] = []
    for name, options in {
        "loop": {},
        "scanned": {"data": Data()},
        "given": {"families": Families()},
        "off": {"online_families": False},
        "on": {"data": Data(), "online_families": True},
    }.items():
        guard, _ = guarded(tmp_path / name, Stream("picture"), cut=2, **options)
        guards.append(guard)
    kinds = [type(guard.host.families) for guard in guards]
    assert kinds == [OnlineFamilies, type(None), Families, type(None), OnlineFamilies]
    assert len(index_of(guards[0]).memory) <= 16
    assert len(index_of(guards[4]).memory) < OTHERS


def read_flagged(folder: Path) -> set[str]:
    lines = (folder / "flagged.csv").read_text(encoding="utf-8").splitlines()
    place = lines[0].split(",").index("key")
    return {line.split(",")[place] for line in lines[1:]}
