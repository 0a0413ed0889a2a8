"""Every mitigation: two processes train the same weights as one, and a resumed run those of an uninterrupted one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from memtrain.records import read_steps, read_table
from tests.conformance.mitigation_runs import CUT, GLOBAL_BATCH, STEPS, Case, cases, run, write_images
from tests.conftest import ROOT

CASES = cases()
EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


class Runs:
    """What was trained already; the tests share the uninterrupted runs."""

    def __init__(self, folder: Path, pretrained: Path) -> None:
        self.folder, self.pretrained = folder, pretrained
        self._whole: dict[str, dict[str, Tensor]] = {}
        self._both = False

    def whole(self, case: Case) -> dict[str, Tensor]:
        """Weights of one process, uninterrupted."""
        if case.name not in self._whole:
            self._whole[case.name] = run(case, self.folder / f"whole-{case.name}", pretrained=self.pretrained)
        return self._whole[case.name]

    def two(self, case: Case) -> list[dict[str, Tensor]]:
        """Weights on each of two processes; all cases run in one pair."""
        if not self._both:
            self._start_two()
            self._both = True
        files = sorted((self.folder / f"two-{case.name}").glob("weights-*.pt"))
        return [torch.load(file, weights_only=True) for file in files]

    def _start_two(self) -> None:
        for case in CASES:
            self.whole(case)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-W", "ignore", "-m", "tests.conformance.mitigation_runs"]
        processes = []
        for rank in range(2):
            with (self.folder / f"two-{rank}.log").open("w") as log:
                environment = {**os.environ, **shared, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
                arguments = [str(self.folder), str(self.pretrained)]
                processes.append(
                    subprocess.Popen([*command, *arguments], env=environment, cwd=ROOT, stdout=log, stderr=log)
                )
        try:
            codes = [process.wait(timeout=500) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert codes == [0, 0], "\n".join((self.folder / f"two-{rank}.log").read_text()[-3000:] for rank in range(2))

    def rows(self, name: str) -> pa.Table:
        """The step records, each batch in the order of keys."""
        return read_steps(self.folder / name / "records").sort_by([("batch", "ascending"), ("key", "ascending")])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Runs:
    folder = tmp_path_factory.mktemp("mitigations")
    write_images(folder / "images")
    return Runs(folder, pipeline_folder)


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((value - second[name]).abs().max()) for name, value in first.items())


def column(table: pa.Table, name: str) -> Tensor:
    return torch.tensor(table[name].to_pylist(), dtype=torch.float64)


@EVERY
def test_it_acts(case: Case, runs: Runs) -> None:
    """So that the other tests mean something: if not, give it settings in mitigation_runs.py with which it does."""
    if case.kind is not None:
        assert distance(runs.whole(case), runs.whole(CASES[0])) > 1e-4


@pytest.mark.slow
@EVERY
def test_two_processes_equal_one(case: Case, runs: Runs) -> None:
    one, both = runs.whole(case), runs.two(case)
    assert len(both) == 2
    assert distance(*both) == 0
    assert distance(both[0], one) < 2e-6
    alone, shared = runs.rows(f"whole-{case.name}"), runs.rows(f"two-{case.name}")
    assert alone.num_rows == STEPS * GLOBAL_BATCH
    for name in ("key", "batch", "step", "timestep", "prompt_length"):
        assert alone[name].to_pylist() == shared[name].to_pylist()
    # Held-out samples are dealt out to processes, so what is calibrated on them differs.
    for name in ("weight", "denoising_loss", *(() if case.needs_reference else ("score", "flagged"))):
        torch.testing.assert_close(column(alone, name), column(shared, name), atol=1e-5, rtol=1e-4)


@EVERY
def test_a_resumed_run_is_the_uninterrupted_one(case: Case, runs: Runs) -> None:
    whole = runs.whole(case)
    options: dict[str, Any] = {"folder": runs.folder / f"cut-{case.name}", "pretrained": runs.pretrained}
    run(case, stop=CUT, **options)
    resumed = run(case, resume=True, **options)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    tables = [runs.rows(f"{name}-{case.name}") for name in ("whole", "cut")]
    assert tables[0].num_rows == STEPS * GLOBAL_BATCH
    for name in tables[0].column_names:
        assert tables[0][name].to_pylist() == pytest.approx(tables[1][name].to_pylist(), nan_ok=True), name
    evidence = [read_table(runs.folder / f"{name}-{case.name}" / "records", "evidence") for name in ("whole", "cut")]
    for name in ("key", "visits", "flagged", "first_flagged_step"):
        assert evidence[0][name].to_pylist() == evidence[1][name].to_pylist()
