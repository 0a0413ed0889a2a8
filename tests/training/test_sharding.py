"""FSDP2: two processes that share the weights train what one trains; what cannot work is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ConfigurationError
from memtrain.models.whole_weights import is_sharded
from memtrain.records import read_steps
from memtrain.training.lora import LoRA
from memtrain.training.sharding import check_strategy, shard
from memtrain.training.text_to_image import TextToImageModule
from tests.conformance.mitigation_runs import write_images
from tests.conftest import ROOT
from tests.training.sharded_runs import run


@pytest.mark.slow
def test_two_processes_that_share_the_weights_equal_one(pipeline_folder: Path, tmp_path: Path) -> None:
    """The exported pipeline, and what the monitor saw."""
    write_images(tmp_path / "images")
    run(tmp_path / "one", pretrained=pipeline_folder, processes=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.sharded_runs", str(tmp_path / "two")]
    processes = []
    for rank in range(2):
        with (tmp_path / f"{rank}.log").open("w") as log:
            environment = {**os.environ, **shared, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
            processes.append(
                subprocess.Popen([*command, str(pipeline_folder)], env=environment, cwd=ROOT, stdout=log, stderr=log)
            )
    try:
        codes = [process.wait(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], (tmp_path / "0.log").read_text()[-3000:]
    one, two, base = (
        StableDiffusionPipeline.from_pretrained(folder).unet.state_dict()
        for folder in (tmp_path / "one" / "pipeline", tmp_path / "two" / "pipeline", pipeline_folder)
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-6, rtol=0)
    assert max(float((value - base[name]).abs().max()) for name, value in one.items()) > 1e-3
    order = [("batch", "ascending"), ("key", "ascending")]
    tables = [read_steps(tmp_path / name / "records").sort_by(order) for name in ("one", "two")]
    names = {name for name in tables[0].column_names if name.startswith("attention_entropy")}
    assert len(names) == 3 and tables[0]["key"].to_pylist() == tables[1]["key"].to_pylist()
    for name in (*names, "denoising_loss", "weight"):
        values = [torch.tensor(table[name].to_pylist()) for table in tables]
        torch.testing.assert_close(values[1], values[0], atol=1e-5, rtol=1e-4)


SHARDED = {"tensor_parallel_size": 1, "save_distributed_checkpoint": False}


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        (FSDPStrategy(), {}, "FSDPStrategy"),
        (ModelParallelStrategy(**SHARDED), {"ema_decay": 0.9}, "a weight average"),
        (ModelParallelStrategy(**SHARDED), {"lora": LoRA(rank=2)}, "adapters"),
        (ModelParallelStrategy(**SHARDED), {"train_text_encoder": True}, "text encoders"),
        (ModelParallelStrategy(save_distributed_checkpoint=False), {}, "tensor parallelism"),
        (ModelParallelStrategy(tensor_parallel_size=1), {}, "many files"),
        (ModelParallelStrategy(**SHARDED), {"ckpt_path": "last.ckpt"}, "resume"),
        (ModelParallelStrategy(**SHARDED), {"callbacks": [MemorizationMonitor()]}, "compares with the base model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_is_refused(
    strategy: Any, options: dict[str, Any], message: str, pipeline_folder: Path
) -> None:
    told = {name: options.pop(name) for name in ("ckpt_path", "callbacks") if name in (options := dict(options))}
    trainer = SimpleNamespace(**{"strategy": strategy, "ckpt_path": None, "callbacks": [], **told})
    module = TextToImageModule(str(pipeline_folder), **{"ema_decay": None, **options})
    with pytest.raises(ConfigurationError, match=message):
        check_strategy(module, trainer)


def test_what_works_is_let_through_and_shards_nothing_by_itself(pipeline_folder: Path) -> None:
    module = TextToImageModule(str(pipeline_folder), ema_decay=None)
    for strategy in (DDPStrategy(), ModelParallelStrategy(**SHARDED)):
        monitor = MemorizationMonitor(reference=isinstance(strategy, DDPStrategy))
        check_strategy(module, SimpleNamespace(strategy=strategy, ckpt_path=None, callbacks=[monitor]))
    shard(module)
    assert not is_sharded(module.denoiser)
