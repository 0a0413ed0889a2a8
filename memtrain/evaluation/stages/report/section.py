"""The stage `report` has no section of its own."""

from __future__ import annotations

from pathlib import Path

from memtrain.evaluation.report.section import Section


def sections(folder: Path) -> list[Section]:
    """Return no sections.

    Args:
        folder: the folder of the results.
    """
    return []
