"""Held-out losses of an evaluation are those of Stable Diffusion 1 and 2; other families do without."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from memtrain.evaluation.stages.measure.sampled import _losses
from tests.conformance.pipelines import pipeline_of


@pytest.mark.parametrize(("kind", "units"), [("unet", ["losses-000000"]), ("sdxl", []), ("sd3", [])])
def test_other_families_are_measured_without_losses(kind: str, units: list[str]) -> None:
    given: Any = SimpleNamespace(pipeline=pipeline_of(kind))
    samples: Any = SimpleNamespace(heldout=(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), ["a", "b"]))
    found = _losses(given, samples)
    assert list(found) == units
    assert all(torch.isfinite(unit().tensors["found"]).all() for unit in found.values())
