"""A checkpoint of a training run for a stage: its step, and a function that loads its pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Checkpoint:
    """One of several compared checkpoints.

    Attributes:
        path: the checkpoint file.
        step: the number of optimizer steps; None if the file does not hold it.
        load: a function that returns the pipeline on its device, with averaged weights if the file has them.
    """

    path: Path
    step: int | None
    load: Callable[[], DiffusionPipeline]
