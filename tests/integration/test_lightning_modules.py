"""A plain LightningModule of either package, manual optimization, and batches that are tuples."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch
import pytest
from torch.utils.data import DataLoader, default_collate

from tests.integration.lightning_runs import from_dict, require_equal_to_weights_by_hand
from tests.integration.loops import BATCH, Visits

PACKAGES = [lightning.pytorch, pytest.importorskip("pytorch_lightning")]


def tuples() -> DataLoader[Any]:
    """Batches without names."""
    return DataLoader(
        Visits(),  # type: ignore[arg-type]
        batch_size=BATCH,
        collate_fn=lambda rows: tuple(from_dict(default_collate(rows))),
    )


@pytest.mark.parametrize("package", PACKAGES, ids=["lightning", "pytorch_lightning"])
def test_a_module_that_knows_nothing_of_memtrain(package: ModuleType, tmp_path: Path) -> None:
    require_equal_to_weights_by_hand(package, tmp_path)


def test_manual_optimization(tmp_path: Path) -> None:
    require_equal_to_weights_by_hand(lightning.pytorch, tmp_path, manual=True)


def test_batches_that_are_tuples(tmp_path: Path) -> None:
    """Samples are named by what they look like."""
    require_equal_to_weights_by_hand(lightning.pytorch, tmp_path, loader=tuples, unpack=tuple)
