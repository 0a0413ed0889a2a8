"""One of two processes: several trainers, one after the other, in one pair of processes.

RANK=0 WORLD_SIZE=2 ... python -m tests.integration.two_processes FOLDER
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.guard import Guard
from tests.integration import (
    test_dreambooth_loop,
    test_fabric_loop,
    test_lora_loop,
    test_sdxl_loop,
    test_text_to_image_loop,
)
from tests.integration.loops import guard

FABRIC = {"strategy": "ddp", "devices": 2}
TRAINERS: dict[str, Callable[..., Tensor]] = {
    "text_to_image": test_text_to_image_loop.train,
    "lora": test_lora_loop.train,
    "dreambooth": test_dreambooth_loop.train,
    "sdxl": test_sdxl_loop.train,
    "fabric": test_fabric_loop.train,
}


def run(name: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Train with a guard; what this process has in the end."""
    guards: list[Guard] = []

    def watch(denoiser: nn.Module, **given: Any) -> Guard:
        # Without a scheduler nothing is measured with fresh noise, of which two processes draw other than one.
        guards.append(guard(denoiser, noise_scheduler=None, folder=folder, **given))
        return guards[-1]

    weights = TRAINERS[name](watch, **options)
    calibration = guards[-1].calibration
    return {"weights": weights, "flagged": calibration.first_flagged, "threshold": calibration.threshold}


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    results = {}
    for name in TRAINERS:
        options = FABRIC if name == "fabric" else {}
        results[name] = partial(run, name, folder / name)(**options)
    torch.save(results, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
