"""What befalls a command from outside: cause, remedy, and the command that goes on."""

from __future__ import annotations

import errno
import os
import shlex
import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from memtrain.cli.faults import explained, training_again
from memtrain.errors import DiskFullError, MemtrainError, MissingPartsError, ResourceError

GLOO = "[/pytorch/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:56226: Connection reset by peer."


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), ResourceError, "memory of the GPU"),
        (MemoryError(), ResourceError, "memory of this machine is used up: MemoryError"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), ResourceError, "is used up"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), ResourceError, "worker process died"),
        (BrokenProcessPool("A process in the process pool was terminated"), ResourceError, "worker process died"),
        (RuntimeError(GLOO), ResourceError, "Another process of this run ended"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x.parquet"), DiskFullError, "/data/x.parquet could"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DiskFullError, "the quota is used up"),
    ],
)
def test_a_fault_from_outside_says_cause_remedy_and_the_next_command(
    error: Exception, kind: type[MemtrainError], said: str
) -> None:
    wrapped = ValueError("of the parser")
    wrapped.__cause__ = error
    for one in (error, wrapped):
        found = explained(one, again="python train.py again", smaller="smaller batches")
        assert type(found) is kind
        assert said in found.problem
        assert found.remedy.endswith("go on with: python train.py again")


class Killed(Dataset[int]):
    """A worker dies of the first sample."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_worker_of_the_loader_that_is_killed_is_named_as_such() -> None:
    with pytest.raises(RuntimeError) as raised:
        list(DataLoader(Killed(), num_workers=1, multiprocessing_context="fork"))
    found = explained(raised.value, again="the same", smaller="less")
    assert isinstance(found, ResourceError)
    assert "A worker process died" in found.problem and "num_workers 0" in found.remedy


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), KeyError("out of memory"), FileNotFoundError(2, "no")]
)
def test_errors_with_another_cause_keep_their_traceback(error: Exception) -> None:
    assert explained(error, again="", smaller="") is None


def test_an_error_of_ours_is_found_below_others(tmp_path: Path) -> None:
    own, outer = ResourceError("ours"), RuntimeError("x")
    outer.__cause__ = own
    assert explained(outer, again="", smaller="") is own


def test_the_process_that_ended_is_named_where_that_is_known() -> None:
    error = RuntimeError("Connection closed by peer [127.0.0.1]:31108")
    error.add_note("local rank 1 (process 7 on node) was killed by SIGKILL")
    found = explained(error, again="", smaller="")
    assert found is not None
    assert "can no longer be reached: local rank 1 (process 7 on node) was killed by SIGKILL. Conn" in found.problem


@pytest.mark.parametrize("shard", [["--shard", "merge"], ["--shard=merge"], []])
def test_missing_parts_come_with_the_command_that_makes_them(shard: list[str]) -> None:
    error = MissingPartsError("1 of 3 parts are missing", expected="all", remedy="")
    again = shlex.join(["memtrain", "scan", "my images", *shard, "--output", "out"])
    found = explained(error, again=again, smaller="")
    assert found is not None
    assert "make the missing parts here with: memtrain scan 'my images' --output out." in found.remedy


def test_training_goes_on_from_the_last_checkpoint_unless_another_was_asked_for() -> None:
    assert training_again(["fit", "--config", "my run.yaml"]) == (
        "memtrain train --config 'my run.yaml' --ckpt_path last"
    )
    assert training_again(["fit", "--ckpt_path=x.ckpt"]) == "memtrain train --ckpt_path=x.ckpt"
