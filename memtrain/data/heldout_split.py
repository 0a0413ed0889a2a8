"""The choice of held-out samples: whole pictures, in an order that depends on keys alone.

The split orders pictures by a hash of their keys, so it does not depend on file order, machine or seed. A sample stays
held out when others are added (except for the few at the boundary). All files of one picture stay on one side of the
split. Pictures that share a caption stay on one side too, unless so many share it that they could never be held out
together. Otherwise the model would learn from copies of a held-out picture, or from other pictures under its caption,
and the held-out loss would say nothing. One file measures a held-out picture of several files. Its other files are
neither trained on nor measured.

In a large source, `heldout_most` limits the number of held-out pictures. A false-positive rate of 0.1 % takes 999 of
them, and each further one is measured before training and teaches nothing.
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
"""The smallest number of held-out pictures, whatever the fraction, in a source with three times as many."""
SHARED_BY_MANY = 0.05
"""The share of pictures from which a caption is a common one, which keeps no pictures together."""


@dataclass(frozen=True)
class Split:
    """Indices of samples, each list in the order of the keys.

    Attributes:
        train: the samples that are trained on.
        heldout: the held-out samples, one of each picture.
        aside: further files of held-out pictures, on neither side.
    """

    train: list[int]
    heldout: list[int]
    aside: list[int]

    def without(self, gone: Sequence[bool]) -> Split:
        """Return the same split without some of the samples."""
        return Split(*([row for row in rows if not gone[row]] for rows in (self.train, self.heldout, self.aside)))


def split_heldout(
    keys: Sequence[str], fraction: float, *, families: FamilyIndex | None = None, most: int | None = None
) -> Split:
    """Split samples into training and held-out samples.

    Args:
        keys: the keys of all samples.
        fraction: the share of the pictures that is held out, in [0, 0.9].
        families: the families, which tell the files of one picture; by default every sample is a picture.
        most: the largest number of held-out pictures, whatever the fraction; by default no limit.

    Raises:
        ConfigurationError: if the fraction is out of range or leaves nothing to train on, or if `most` is below 1.
    """
    if most is not None and most < 1:
        raise ConfigurationError(
            f"heldout_most={most}",
            expected="at least 1 picture",
            remedy="set data.init_args.heldout_fraction to 0 to hold out none",
        )
    if not 0 <= fraction <= 0.9:
        raise ConfigurationError(
            f"heldout_fraction={fraction}",
            expected="a share from 0 to 0.9",
            remedy="correct --data.init_args.heldout_fraction",
        )
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
            remedy="lower --data.init_args.heldout_fraction, or add images",
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
    """Return the pictures of whole groups, at most `count`."""
    held: list[list[int]] = []
    for together in sorted(groups, key=lambda group: _place(group, keys)):
        if len(held) + len(together) <= count:
            held += together
    return held


def _grouped(names: Sequence[str]) -> list[list[int]]:
    """Return the indices of equal names."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return list(groups.values())


def _kept_together(
    pictures: list[list[int]], keys: Sequence[str], families: FamilyIndex | None
) -> list[list[list[int]]]:
    """Return the pictures that stay on one side, group by group."""
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
    """Return the place of a group in the random order, by its smallest key, whatever their order and number."""
    return hash_order(min(keys[index] for picture in group for index in picture), "heldout")
