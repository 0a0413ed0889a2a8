"""The probe under DDP and FSDP2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DISTRIBUTED = """
import os, sys, torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from memtrain.models.probe import DenoiserProbe
from tests.conformance.families import FAMILIES, build, call
from tests.conformance.probe_oracle import assert_no_hooks, assert_reads, assert_same, observe, oracle, plain

def main(family, kind):
    model = build(family)
    expected, untouched = oracle(family, model), plain(family, model)
    model.zero_grad()
    host = DistributedDataParallel(model, find_unused_parameters=True) if kind == "ddp" else model
    if kind == "fsdp":
        for module in list(model.modules()):
            if type(module).__name__.endswith("TransformerBlock"):
                fully_shard(module)
        fully_shard(model)
    with DenoiserProbe(host, sites="*") as probe:
        observation, found = observe(family, model, probe, lambda: host(**call(family)[0]))
    assert_reads(observation, expected)
    found = [getattr(gradient, "full_tensor", lambda: gradient)() for gradient in found]
    assert_same(found, untouched, exact=False)
    assert_no_hooks(model) if kind == "ddp" else None

torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
for family in FAMILIES:
    for kind in ("ddp", "fsdp"):
        main(family, kind)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_ddp_and_fsdp2_on_two_processes(tmp_path: Path) -> None:
    """Every family under both, in one pair of processes."""
    script, root = tmp_path / "distributed.py", Path(__file__).parents[2]
    script.write_text(DISTRIBUTED)
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path / "meeting")]
    running = [
        subprocess.Popen([*command, str(rank)], env=environment, cwd=root, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
