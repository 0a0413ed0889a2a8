"""A checkpoint of a training run, as a stage is given it: the step it is of, and how its pipeline is had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Checkpoint:
    """One of several that are compared.

    Attributes:
        path: of the file.
        step: optimizer steps taken; None where the file does not say.
        load: the pipeline, on its device, with averaged weights if the file holds an average.
    """

    path: Path
    step: int | None
    load: Callable[[], DiffusionPipeline]
