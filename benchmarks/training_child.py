"""Runs a training script in this process and writes when its optimizer stepped, and how much memory it took.

    python benchmarks/training_child.py FIGURES.json SCRIPT [arguments of the script]

The clock is a hook that torch calls after every optimizer step, so any script is timed alike and none is changed.
"""

from __future__ import annotations

import json
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

KIB = 1024


def main(file: str, script: str, *arguments: str) -> None:
    """Run `script` as if it were the command.

    Args:
        file: JSON file for the figures.
        script: Python file.
        arguments: the arguments of the script.
    """
    began, steps = time.perf_counter(), []

    def note(*_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        steps.append(time.perf_counter() - began)

    register_optimizer_step_post_hook(note)
    _declare_missing_operators()
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        figures = {"steps": steps, "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB}
        if torch.cuda.is_available():
            figures["peak_gpu_gib"] = torch.cuda.max_memory_allocated() / KIB**3
        Path(file).write_text(json.dumps(figures), encoding="utf-8")


def _declare_missing_operators() -> None:
    """A torchvision that was built for CUDA cannot be imported beside a CPU torch unless these have a signature.

    Diffusers' scripts take only its transforms of PIL images, which call no operator.
    """
    if torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


_KEPT: list[Any] = []
"""A library's definitions last as long as it does."""


if __name__ == "__main__":
    main(*sys.argv[1:])
