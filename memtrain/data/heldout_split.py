"""Which samples are held out: whole pictures, in an order that depends on keys alone.

The split orders pictures by a hash of their keys, so it does not depend on file order, machine or seed, and a sample
stays held out when others are added (but for the few at the boundary). What is one picture stays on one side of it,
and so do pictures that share a caption, unless so many share it that they could never be held out together. Copies of a
held-out picture, and other pictures under its caption, would spoil what held-out samples are for: the model learns from
the one what it is then tested on with the other. A held-out picture of several files is measured by one of them; the
others are neither trained on nor measured.

Of a large source not the whole share is held out, but as many pictures as say anything: a false-positive rate of 0.1 %
takes 999, and each of them is measured before training and teaches nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from memtrain.errors import ConfigurationError
from memtrain.families.table import FamilyIndex
from memtrain.functional.keyed_draws import hash_order

log = logging.getLogger(__name__)

HELDOUT_AT_LEAST = 16
"""Held-out pictures kept at least, whatever the fraction, when the source has three times as many."""
SHARED_BY_MANY = 0.05
"""Share of the pictures from which on a caption is a common one, which keeps no pictures together."""


@dataclass(frozen=True)
class Split:
    """Indices of samples, each list in the order of the keys.

    Attributes:
        train: trained on.
        heldout: held out, one of each picture.
        aside: further files of held-out pictures, on neither side.
    """

    train: list[int]
    heldout: list[int]
    aside: list[int]

    def without(self, gone: Sequence[bool]) -> Split:
        """The same without some of the samples."""
        return Split(*([row for row in rows if not gone[row]] for rows in (self.train, self.heldout, self.aside)))


def split_heldout(
    keys: Sequence[str], fraction: float, *, families: FamilyIndex | None = None, most: int | None = None
) -> Split:
    """Indices of the training and of the held-out samples.

    Args:
        keys: the keys of all samples.
        fraction: share of the pictures that is held out, in [0, 0.9].
        families: what is one picture; by default every sample is.
        most: pictures that are held out at the most, whatever the fraction; default no limit.

    Raises:
        ConfigurationError: if the fraction is out of range or leaves nothing to train on, or `most` is below 1.
    """
    if most is not None and most < 1:
        raise ConfigurationError(
            f"heldout_most={most}", expected="at least 1 picture", remedy="set heldout_fraction to 0 to hold out none"
        )
    if not 0 <= fraction <= 0.9:
        raise ConfigurationError(f"heldout_fraction={fraction}", expected="a share from 0 to 0.9", remedy="change it")
    pictures = _grouped([key if families is None else families.picture(key) for key in keys])
    count = round(fraction * len(pictures))
    if fraction > 0:
        count = max(count, min(HELDOUT_AT_LEAST, len(pictures) // 3))
    if most is not None and count > most:
        log.info(
            "%d pictures are held out, not the %d that heldout_fraction=%g asks for (heldout_most)",
            most,
            count,
            fraction,
        )
        count = most
    if count and count >= len(pictures):
        raise ConfigurationError(
            f"heldout_fraction={fraction} holds out all of {len(pictures)} picture(s)",
            expected="pictures left to train on",
            remedy="lower heldout_fraction, or add images",
        )
    if families is None and len(pictures) == len(keys):
        first = sorted(sorted(range(len(keys)), key=lambda index: hash_order(keys[index], "heldout"))[:count])
        alone = frozenset(first)
        return Split([index for index in range(len(keys)) if index not in alone], first, [])
    held = _chosen(_kept_together(pictures, keys, families), count, keys=keys)
    if 2 * len(held) < count:  # captions chain most pictures together
        held = _chosen([[picture] for picture in pictures], count, keys=keys)
    out = {index for picture in held for index in picture}
    first = sorted(picture[0] for picture in held)
    return Split([index for index in range(len(keys)) if index not in out], first, sorted(out.difference(first)))


def _chosen(groups: list[list[list[int]]], count: int, *, keys: Sequence[str]) -> list[list[int]]:
    """Pictures of whole groups, at most `count`."""
    held: list[list[int]] = []
    for together in sorted(groups, key=lambda group: _place(group, keys)):
        if len(held) + len(together) <= count:
            held += together
    return held


def _grouped(names: Sequence[str]) -> list[list[int]]:
    """Indices of equal names."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return list(groups.values())


def _kept_together(
    pictures: list[list[int]], keys: Sequence[str], families: FamilyIndex | None
) -> list[list[list[int]]]:
    """Pictures that stay on one side, group by group."""
    if families is None:
        return [[picture] for picture in pictures]
    by_caption: dict[str, set[int]] = {}
    for number, picture in enumerate(pictures):
        for index in picture:
            by_caption.setdefault(families.caption(keys[index]), set()).add(number)
    leader = list(range(len(pictures)))

    def find(number: int) -> int:
        while leader[number] != number:
            leader[number] = number = leader[leader[number]]
        return number

    for numbers in by_caption.values():
        if 1 < len(numbers) <= max(2, SHARED_BY_MANY * len(pictures)):
            first, *others = sorted(find(number) for number in numbers)
            for other in others:
                leader[other] = first
    groups: dict[int, list[list[int]]] = {}
    for number, picture in enumerate(pictures):
        groups.setdefault(find(number), []).append(picture)
    return list(groups.values())


def _place(group: list[list[int]], keys: Sequence[str]) -> str:
    """Where a group stands in the random order: by one of its keys, whatever their order and number."""
    return hash_order(min(keys[index] for picture in group for index in picture), "heldout")
