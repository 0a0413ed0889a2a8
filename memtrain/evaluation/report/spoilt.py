"""Results that cannot be shown because a file is cut off or has another shape. The page shows the other results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2.exceptions import UndefinedError

from memtrain.errors import MemtrainError, RecordError
from memtrain.evaluation.report.section import Section, joined, paragraph

SHAPE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError, UndefinedError)
"""Exceptions that reading results of another shape can raise."""
LAST = 99
"""Place of a section that stands after all results."""


def spoilt(stage: str, folder: Path, error: Exception) -> MemtrainError:
    """Make the error that says why the results of a stage cannot be shown.

    Args:
        stage: the name of the stage.
        folder: the folder of the results.
        error: a :class:`memtrain.errors.MemtrainError`, or one of :data:`SHAPE`.
    """
    if isinstance(error, MemtrainError):
        return error
    said = RecordError(
        f"The results of {stage} in {folder} cannot be shown ({type(error).__name__}: {error})",
        expected=f"the files that `memtrain {stage}` writes",
        remedy=f"run `memtrain {stage}` again, or remove its files",
    )
    said.__cause__ = error
    return said


def spoilt_sections(errors: Sequence[MemtrainError]) -> list[Section]:
    """Make a section of these errors, and print them."""
    for one in errors:
        print(f"Not in the report: {one}")
    body = joined([paragraph(str(one)) for one in errors])
    return [Section(title="Results that cannot be shown", body=body, place=LAST)] if errors else []
