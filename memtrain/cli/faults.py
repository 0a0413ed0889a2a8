"""Troubles from outside a command, in plain words: cause, remedy, and the command that goes on.

Memory, disks, worker processes and the other processes of a run give out with errors of their own libraries, in
tracebacks that hide what to do. Nothing is caught here that has another cause: it keeps its traceback.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

import torch

from memtrain.cli.spoken import train_command
from memtrain.errors import DiskFullError, MemtrainError, MissingPartsError, ResourceError
from memtrain.files.whole import free_bytes, no_space

NO_MEMORY = ("out of memory", "defaultcpuallocator", "not enough memory", "cannot allocate memory", "bad_alloc")
NOT_TWICE = "What is done is not done twice"
ROOM = "free space there, or name a folder on another disk"
DEAD_WORKER = ("dataloader worker", "process pool was terminated", "exited unexpectedly")
DEAD_PROCESS = (
    *("connection closed by peer", "connection reset by peer", "broken pipe", "socket timeout", "timed out waiting"),
    *("remote process exited", "nccl communicator was aborted", "watchdog caught collective operation timeout"),
)


def explained(error: BaseException, *, again: str, smaller: str) -> MemtrainError | None:
    """An error of ours that says what happened outside; None for an error with another cause.

    Args:
        error: that ended the command.
        again: the command that goes on.
        smaller: what to ask for less memory with.
    """
    for one in _chain(error):
        if isinstance(one, DiskFullError):
            return DiskFullError(one.problem, expected=one.expected, remedy=f"{ROOM}, then go on with: {again}")
        if isinstance(one, MissingPartsError):
            remedy = f"submit the same array again, or make the missing parts here with: {without_shard(again)}"
            return MissingPartsError(one.problem, expected=one.expected, remedy=f"{remedy}. {NOT_TWICE}")
        if isinstance(one, MemtrainError):
            return one
        if (found := _explained(one, again=again, smaller=smaller)) is not None:
            return found
    return None


def _explained(error: BaseException, *, again: str, smaller: str) -> MemtrainError | None:
    said = " ".join(str(error).split())
    lower, foreign = said.lower(), isinstance(error, (RuntimeError, OSError))
    name = getattr(error, "filename", None)
    path = Path(name) if isinstance(name, str) else Path()
    if (reason := no_space(error, path)) is not None:
        free = f" ({free_bytes(path) or 0:,} bytes free)" if isinstance(name, str) else f": {said[:300]}"
        return DiskFullError(
            f"{path if isinstance(name, str) else 'A file'} could not be written: {reason}{free}",
            expected="space for what the command writes; finished files are as they were",
            remedy=f"{ROOM}, then go on with: {again}",
        )
    if isinstance(error, BrokenExecutor) or (foreign and any(words in lower for words in DEAD_WORKER)):
        return ResourceError(
            f"A worker process died: {said[:300]}",
            expected="workers that live as long as the command; the system kills them when memory runs out",
            remedy=f"fewer workers (such as --data.init_args.num_workers 0) or {smaller}, then go on with: {again}",
        )
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        foreign and any(words in lower for words in NO_MEMORY)
    ):
        where = "of the GPU" if isinstance(error, torch.OutOfMemoryError) else "of this machine"
        return ResourceError(
            f"The memory {where} is used up: {said[:300] or type(error).__name__}",
            expected="room for a batch beside the model",
            remedy=f"{smaller}, then go on with: {again}",
        )
    if (foreign and any(words in lower for words in DEAD_PROCESS)) or type(error).__name__ == "ProcessExitedException":
        who = "; ".join(getattr(error, "__notes__", []))
        return ResourceError(
            f"Another process of this run ended or can no longer be reached: {f'{who}. ' if who else ''}{said[:300]}",
            expected="every process up to the end; its output, or the log of the system, says why it ended",
            remedy=f"remove the cause, then go on with: {again}",
        )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, the outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def without_shard(command: str) -> str:
    """The command that does whatever is missing, and puts the parts together.

    Args:
        command: the command of a process that does one part, or puts parts together.
    """
    words = shlex.split(command)
    given = [place for place, word in enumerate(words) if word == "--shard"]
    left = [word for place, word in enumerate(words) if place not in given and place - 1 not in given]
    return shlex.join([word for word in left if not word.startswith("--shard=")])


def training_again(words: Sequence[str]) -> str:
    """The command that goes on from the last checkpoint; without one it begins again.

    Args:
        words: the words of `memtrain train`.
    """
    words = list(words)
    asked = any(word.split("=")[0] == "--ckpt_path" for word in words)
    return shlex.join([*train_command(words), *([] if asked else ["--ckpt_path", "last"])])


SMALLER_TRAINING = (
    "smaller batches (--data.init_args.batch_size) and as many more of them in a step "
    "(--trainer.accumulate_grad_batches), or what `memtrain plan` suggests"
)
SMALLER_EVALUATION = "a smaller --batch_size"
SMALLER_SCAN = "another descriptor, or less beside it on this machine"
