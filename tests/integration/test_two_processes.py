"""Every loop on two processes comes to what it comes to on one with the same global batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from memtrain.records import read_steps
from tests.conftest import ROOT
from tests.integration.loops import STEPS
from tests.integration.two_processes import TRAINERS, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a pair of processes, and what each had in the end."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
            "ACCELERATE_USE_CPU": "true",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.integration.two_processes", str(folder)],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return folder, [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def shown(steps: Any, column: str) -> list[Any]:
    """A column of the records, in an order that does not depend on the number of processes."""
    rows = steps.select(["batch", "key", column]).to_pylist()
    return [row[column] for row in sorted(rows, key=lambda row: (row["batch"], row["key"]))]


@pytest.mark.parametrize("name", TRAINERS)
def test_two_processes_are_one_with_the_same_global_batch(
    pair: tuple[Path, list[dict[str, Any]]], name: str, tmp_path: Path
) -> None:
    folder, (first, second) = pair[0], (part[name] for part in pair[1])
    assert torch.equal(first.pop("weights"), second["weights"])
    assert first == {part: second[part] for part in first}
    steps = read_steps(folder / name / "records")
    assert set(steps["rank"].to_pylist()) == {0, 1}
    if name in {"lora", "dreambooth"}:
        # Each process draws its own dropout, or has class images of its own.
        assert first["flagged"]
        return
    alone = run(name, tmp_path)
    # Gradients are averaged in another order.
    torch.testing.assert_close(second["weights"], alone["weights"], atol=1e-3, rtol=1e-3)
    assert first["flagged"] == alone["flagged"] != {}
    own = read_steps(tmp_path / "records")
    for column in ("key", "timestep", "weight", "flagged", "step"):
        assert shown(steps, column) == shown(own, column), column
    assert max(shown(own, "step")) == STEPS - 1
