"""One of two processes that meet broken training data: `python -m tests.faults.broken_data_process FOLDER`.

Every row of the fault table, by both processes at the same time; then a shard that one of them does not see; then an
image that breaks for one of them, while the other waits for it. Prints a line of JSON for each.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import distributed

from memtrain.errors import DataError
from memtrain.monitoring import processes
from tests.faults.test_broken_data import TABLE, module, torn, write


def broadcast(value: object, src: int) -> object:
    held = [value]
    distributed.broadcast_object_list(held, src)
    return held[0]


def agree(decision: bool, all: bool) -> bool:
    value = torch.tensor(int(decision))
    distributed.all_reduce(value, distributed.ReduceOp.MIN if all else distributed.ReduceOp.MAX)
    return bool(value)


def built(folder: Path, path: str, **settings: object) -> tuple[list[str], str]:
    """Keys that are trained on, and the error."""
    data = module(folder, path, **settings)
    data.trainer = SimpleNamespace(
        global_rank=distributed.get_rank(),
        world_size=2,
        default_root_dir=str(folder / "run"),
        ckpt_path=None,
        strategy=SimpleNamespace(broadcast=broadcast, reduce_boolean_decision=agree),
    )
    try:
        data.build()
    except DataError as error:
        return [], error.problem
    return [sample.key for sample in data.train_dataset.samples], ""


def main(folder: Path) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    say = partial(print, flush=True)
    for name, fault in TABLE.items():
        place = folder / name
        if rank == 0:
            place.mkdir()
            fault.make(write(place / "shards"))
        distributed.barrier()
        for action in ("stop", "skip"):
            say(json.dumps([name, action, *built(place, f"{place}/shards/{{0..3}}.tar", broken=action)]))
    own = folder / f"rank {rank}"
    own.mkdir()
    path = write(own / "shards")
    if rank == 1:
        (path / "1.tar").unlink()
    say(json.dumps(["apart", "skip", *built(own, f"{path}/{{0..3}}.tar", broken="skip")]))
    data = module(own, str(path))
    data.build()
    if rank == 1:
        (path / "1.tar").write_bytes((write(own / "more") / "1.tar").read_bytes())
        data = module(own, str(path))
        data.build()
        torn(path)
    data.train_dataset[13]
    try:
        processes.gather([rank])
    except Exception as error:
        say(json.dumps(["alone", "stop", [], type(error).__name__]))
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
