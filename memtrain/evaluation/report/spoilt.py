"""Results that cannot be shown: cut off, or of another shape than the stage writes. Others are shown without them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2.exceptions import UndefinedError

from memtrain.errors import MemtrainError, RecordError
from memtrain.evaluation.report.section import Section, joined, paragraph

SHAPE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError, UndefinedError)
"""What reading results of another shape ends in."""
LAST = 99
"""Place of what is said after all results."""


def spoilt(stage: str, folder: Path, error: Exception) -> MemtrainError:
    """Why the results of a stage cannot be shown.

    Args:
        stage: its name.
        folder: of the results.
        error: a :class:`memtrain.errors.MemtrainError`, or one of :data:`SHAPE`.
    """
    if isinstance(error, MemtrainError):
        return error
    said = RecordError(
        f"The results of {stage} in {folder} cannot be shown ({type(error).__name__}: {error})",
        expected=f"what `memtrain {stage}` writes",
        remedy="run it again, or remove its files",
    )
    said.__cause__ = error
    return said


def spoilt_sections(errors: Sequence[MemtrainError]) -> list[Section]:
    """What the page says of them; they are printed, too."""
    for one in errors:
        print(f"Not in the report: {one}")
    body = joined([paragraph(str(one)) for one in errors])
    return [Section(title="Results that cannot be shown", body=body, place=LAST)] if errors else []
