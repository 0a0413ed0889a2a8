"""Errors whose messages say what was expected, what was found, and the remedy.

Every error that memtrain raises on purpose derives from :class:`MemtrainError`, so a host program can catch the
family. The subclasses say which part of a run has to be changed.

Errors quote file names, captions and settings, and are read on a terminal: nothing in them but line breaks acts there.
"""

from __future__ import annotations

from memtrain.files.shown import shown


class MemtrainError(Exception):
    """Base of all errors raised by memtrain.

    Args:
        problem: what was found.
        expected: what would have been right.
        remedy: what the reader can do about it.
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
    """The training data cannot be used as it is: change the files or the data settings."""


class ConfigurationError(MemtrainError):
    """Two settings contradict each other, or one is missing: change the configuration."""


class ProbeError(MemtrainError):
    """The probe could not see what it was asked to see: change the model set-up or the probe's sites."""


class CalibrationError(MemtrainError):
    """There is too little evidence for the false-positive rate asked: give more held-out samples or a higher rate."""


class RecordError(MemtrainError):
    """The record table is missing, incomplete or was written by something else: check the run folder."""


class MissingPartsError(RecordError):
    """Work that processes share is not done yet: run those that are missing."""


class DiskFullError(MemtrainError, OSError):
    """There is no space for what is to be written: free some, or name another folder."""


class TrainingError(MemtrainError):
    """Training cannot go on, or what it arrived at is of no use: change the settings, or go back to a checkpoint."""


class ResourceError(MemtrainError):
    """Memory ran out, or a process died: ask for less or give more, then go on with the same command."""
