"""The stage `report` has nothing of its own to say."""

from __future__ import annotations

from pathlib import Path

from memtrain.evaluation.report.section import Section


def sections(folder: Path) -> list[Section]:
    """None.

    Args:
        folder: of the results.
    """
    return []
