"""Errors whose messages state the problem, the expected state and the remedy.

Every error that memtrain raises on purpose derives from :class:`MemtrainError`, so a host program can catch the
family. The subclasses say which part of a run has to be changed.

Errors quote file names, captions and settings, and people read them on a terminal. So every control character except
line breaks is escaped.
"""

from __future__ import annotations

from memtrain.files.shown import shown


class MemtrainError(Exception):
    """Base of all errors raised by memtrain.

    Args:
        problem: the state that was found.
        expected: the state that would be right.
        remedy: a command or a change that solves the problem.
    """

    def __init__(self, problem: str, *, expected: str = "", remedy: str = "") -> None:
        self.problem, self.expected, self.remedy = problem, expected, remedy
        parts = [problem]
        if expected:
            parts.append(f"Expected: {expected}")
        if remedy:
            parts.append(f"Remedy: {remedy}")
        lines = "\n  ".join(parts).split("\n")
        super().__init__("\n".join(shown(line, most=len(line)) for line in lines))


class DataError(MemtrainError):
    """The training data cannot be used. Change the files or the data settings."""


class ConfigurationError(MemtrainError):
    """Two settings contradict each other, or one is missing. Change the configuration."""


class ProbeError(MemtrainError):
    """The probe could not read the model. Change the setup of the model or the probe's sites."""


class CalibrationError(MemtrainError):
    """The evidence is too small for the requested false-positive rate. Give more held-out samples or a higher rate."""


class RecordError(MemtrainError):
    """The record table is missing, incomplete or from another program. Check the run folder."""


class MissingPartsError(RecordError):
    """Some processes have not done their part of a shared task yet. Run the missing parts."""


class DiskFullError(MemtrainError, OSError):
    """The disk has no space for a file. Free some space, or name another folder."""


class TrainingError(MemtrainError):
    """Training cannot go on, or its result is of no use. Change the settings, or go back to a checkpoint."""


class ResourceError(MemtrainError):
    """Memory ran out, or a process died. Lower the need for memory or give more, then repeat the same command."""
