"""Adapters of every kind: two processes train the same as one, and a resumed run what an uninterrupted one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from memtrain.records import read_steps
from tests.conformance.lora_runs import CASES, run
from tests.conformance.mitigation_runs import CUT, GLOBAL_BATCH, STEPS, write_images
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
EVERY = pytest.mark.parametrize("case", sorted(CASES))
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Path:
    """What one process and two have trained."""
    folder = tmp_path_factory.mktemp("lora")
    write_images(folder / "images")
    for case in CASES:
        torch.save(run(case, folder / f"one-{case}", pretrained=pipeline_folder), folder / f"one-{case}" / "weights.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-W", "ignore", "-m", "tests.conformance.lora_runs", str(folder), str(pipeline_folder)]
    processes = []
    for rank in range(2):
        with (folder / f"two-{rank}.log").open("w") as log:
            environment = {**os.environ, **shared, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
            processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join((folder / f"two-{rank}.log").read_text()[-3000:] for rank in range(2))
    return folder


def rows(folder: Path) -> pa.Table:
    return read_steps(folder / "records").sort_by([("batch", "ascending"), ("key", "ascending")])


def column(table: pa.Table, name: str) -> Tensor:
    return torch.tensor(table[name].to_pylist(), dtype=torch.float64)


@EVERY
def test_two_processes_equal_one(case: str, folder: Path) -> None:
    one = torch.load(folder / f"one-{case}" / "weights.pt", weights_only=True)
    both = [torch.load(folder / f"two-{case}" / f"weights-{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in one.items():
        assert torch.equal(both[0][name], both[1][name]), name
        torch.testing.assert_close(both[0][name], value, atol=1e-5, rtol=1e-4)
    files = [load_file(folder / f"{kind}-{case}" / FILE) for kind in ("one", "two")]
    for name, value in files[0].items():
        torch.testing.assert_close(files[1][name], value, atol=1e-5, rtol=1e-4)
    alone, shared = (rows(folder / f"{kind}-{case}") for kind in ("one", "two"))
    assert alone.num_rows == STEPS * GLOBAL_BATCH
    assert alone["key"].to_pylist() == shared["key"].to_pylist()
    for name in ("weight", "denoising_loss", "base.denoising_loss"):
        torch.testing.assert_close(column(alone, name), column(shared, name), atol=1e-5, rtol=1e-4, equal_nan=True)
    base = column(alone, "base.denoising_loss")
    assert base.isnan().any() and not base.isnan().all()


@EVERY
def test_a_resumed_run_is_the_uninterrupted_one(case: str, folder: Path, pipeline_folder: Path) -> None:
    whole = torch.load(folder / f"one-{case}" / "weights.pt", weights_only=True)
    run(case, folder / f"cut-{case}", pretrained=pipeline_folder, stop=CUT)
    resumed = run(case, folder / f"cut-{case}", pretrained=pipeline_folder, resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    tables = [rows(folder / f"{kind}-{case}") for kind in ("one", "cut")]
    for name in tables[0].column_names:
        assert tables[0][name].to_pylist() == pytest.approx(tables[1][name].to_pylist(), nan_ok=True), name
