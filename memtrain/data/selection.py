"""Which samples are trained on, how often, and which are held out: decided from keys alone.

The held-out split orders samples by a hash of their key, so it does not depend on file order, machine or seed, and
a sample stays held out when others are added (but for the few at the boundary). Planted duplicates repeat chosen
samples within an epoch under their own key: an image that the data holds r times is visited r times as often.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from memtrain.errors import ConfigurationError, DataError

MINIMUM_HELDOUT = 16
"""Held-out samples kept at least, whatever the fraction, when the source has three times as many."""


@dataclass(frozen=True)
class Duplicates:
    """Plant `count` images `repeats` times each per epoch.

    Args:
        count: number of images.
        repeats: visits of each per epoch; 1 would plant nothing.
        seed: which images are chosen.
        keys: the images by key instead of by chance; then `count` is their number.
        only_in: plant only when this is the data's path, so that a configuration made for an experiment does not repeat
            the images of somebody who runs it on other data.
    """

    count: int = 0
    repeats: int = 100
    seed: int = 0
    keys: tuple[str, ...] = ()
    only_in: str | None = None

    def __post_init__(self) -> None:
        if self.count < 0 or self.repeats < 2:
            raise ConfigurationError(
                f"duplicates: count={self.count}, repeats={self.repeats} plants nothing",
                expected="count >= 0 and repeats >= 2",
                remedy="leave `duplicates` out to plant none",
            )


def read_keys(path: str) -> frozenset[str]:
    """The column `key` of a CSV file.

    Raises:
        DataError: if there is no such file or column.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if "key" not in (rows.fieldnames or ()):
                raise DataError(
                    f"{path} has the columns {list(rows.fieldnames or ())}",
                    expected="a CSV file with a column `key`, such as a run's flagged.csv",
                    remedy="name another file, or list the keys",
                )
            return frozenset(row["key"] for row in rows)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The keys to exclude cannot be read from {path!r}: {error}",
            expected="a CSV file with a column `key`, such as a run's flagged.csv",
            remedy="check the path; single keys are given as a list",
        ) from error


def hash_order(key: str, salt: str) -> str:
    """A position in a fixed random order of keys."""
    return hashlib.sha256(f"{salt}\0{key}".encode()).hexdigest()


def split_heldout(keys: Sequence[str], fraction: float) -> tuple[list[int], list[int]]:
    """Indices of the training and of the held-out samples.

    Args:
        keys: the keys of all samples.
        fraction: share held out, in [0, 0.9].

    Returns:
        `(train, heldout)`, each in the order of `keys`.

    Raises:
        ConfigurationError: if the fraction is out of range or leaves nothing to train on.
    """
    if not 0 <= fraction <= 0.9:
        raise ConfigurationError(f"heldout_fraction={fraction}", expected="a share from 0 to 0.9", remedy="change it")
    count = round(fraction * len(keys))
    if fraction > 0:
        count = max(count, min(MINIMUM_HELDOUT, len(keys) // 3))
    if count and count >= len(keys):
        raise ConfigurationError(
            f"heldout_fraction={fraction} holds out all of {len(keys)} sample(s)",
            expected="samples left to train on",
            remedy="lower heldout_fraction, or add images",
        )
    held = set(sorted(range(len(keys)), key=lambda index: hash_order(keys[index], "heldout"))[:count])
    return [index for index in range(len(keys)) if index not in held], sorted(held)


def plant(train: Sequence[int], keys: Sequence[str], duplicates: Duplicates) -> dict[int, int]:
    """Visits per epoch of each training sample.

    Args:
        train: indices of the training samples.
        keys: the keys of all samples.
        duplicates: what to plant.

    Returns:
        `{index: visits per epoch}` in the order of `train`; planted samples have `duplicates.repeats`.

    Raises:
        DataError: if there are fewer training samples than images to plant, or a named key is none of them.
    """
    if duplicates.keys:
        unknown = set(duplicates.keys) - {keys[index] for index in train}
        if unknown:
            raise DataError(
                f"duplicates.keys: {len(unknown)} key(s) are not training samples, first {sorted(unknown)[:3]}",
                expected="keys of training samples",
                remedy="check the names, and that they are not held out",
            )
        chosen = {index for index in train if keys[index] in duplicates.keys}
    else:
        if duplicates.count > len(train):
            raise DataError(
                f"{duplicates.count} duplicates asked for, but only {len(train)} training samples are there",
                expected="at most as many as training samples",
                remedy="lower duplicates.count",
            )
        order = sorted(train, key=lambda index: hash_order(keys[index], f"duplicates {duplicates.seed}"))
        chosen = set(order[: duplicates.count])
    return {index: duplicates.repeats if index in chosen else 1 for index in train}
