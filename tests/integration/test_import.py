"""Importing memtrain changes nothing of a training that does not use it."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import ROOT

SCRIPT = """
import torch
from torch import nn

def train():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(8, 4, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(30):
        loss = nn.functional.mse_loss(model(torch.randn(4, 4, 8, 8)), torch.randn(4, 4, 4, 4))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([part.detach().flatten() for part in model.parameters()])

before = train()
state = torch.get_rng_state()
import memtrain.guard
assert torch.equal(state, torch.get_rng_state())
assert torch.equal(before, train())
"""


def test_importing_it_changes_no_bit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
