"""The levels of evidence: the picture first, and also the single file and the caption if these differ.

A model memorizes a picture under any file name, so every visit counts for its picture. Two further levels exist if they
differ from the picture: the single *sample*, if a picture has several files, and the *caption*, if several pictures
share it. A family above its threshold is flagged with all its members, even without visits.

A sample with several levels has several chances to be flagged by accident. So the levels share the stated rate. A
sample without family is judged at the whole rate. A picture of one file with a shared caption is judged at half of it.
Samples and pictures of several files, and captions, are judged at a third. A caption of many pictures could flag a
large part of the data at once. So a caption that more than :data:`COMMON` of the pictures share ("a photo") is no
level.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Container, Iterable, Sequence
from typing import Any

from torch import Tensor

from memtrain.evidence.running_means import Evidence
from memtrain.families.table import FamilyIndex

log = logging.getLogger(__name__)

SAMPLE, PICTURE, CAPTION = "sample", "picture", "caption"
"""The levels by which a sample is flagged. A sample without family is its own picture, and is flagged by `sample`."""
BESIDE = (SAMPLE, CAPTION)
"""Levels other than the picture."""
COMMON = 0.1
"""Largest share of the pictures under one caption that is a level."""
FEW = 2
"""Number of pictures under one caption that is always allowed."""


class Levels:
    """The families of samples, the evidence of the further levels, and the flagged families.

    Args:
        families: the families of pictures and captions; None without a scan.
        columns: number of values per visit.
        window: visits that the evidence remembers.

    Attributes:
        beside: evidence of the levels other than the picture, by level.
        crossed: step at which a family crossed its threshold, by level and name.
        first_flagged: step of the first flag of each flagged sample, by key.
        flagged_by: level of this flag, by key.
        flagged_pictures: names of the pictures with a flagged sample.
        pictures: number of training pictures; None if unknown, as with streamed data.
        apart: keys of samples that are not trained on, and never flagged.
        common: captions that too many pictures share to be a level.
    """

    def __init__(self, families: FamilyIndex | None, *, columns: int, window: int) -> None:
        self.families = families
        self.beside = {level: Evidence(columns, window) for level in BESIDE}
        self.crossed: dict[str, dict[str, int]] = {SAMPLE: {}, PICTURE: {}, CAPTION: {}}
        self.first_flagged: dict[str, int] = {}
        self.flagged_by: dict[str, str] = {}
        self.flagged_pictures: set[str] = set()
        self.pictures: int | None = None
        self.apart: Container[str] = ()
        self.common: set[str] = set()
        self._seen = 0
        self._spans: dict[str, tuple[int, int]] = {}
        # The members of each flagged family at its flag. A large family is not searched at each of its visits.
        self._told: dict[tuple[str, str], int] = {}

    # Names

    def picture(self, key: str) -> str:
        """Return the name of a sample's picture."""
        return key if self.families is None else self.families.picture(key)

    def pictures_of(self, keys: Iterable[str]) -> list[str]:
        """Return B names of samples' pictures."""
        return list(keys) if self.families is None else [self.families.picture(key) for key in keys]

    def name(self, level: str, key: str) -> str | None:
        """Return the name of a sample's family at a level; None if the sample has no such level."""
        if level == PICTURE:
            return self.picture(key)
        if self.families is None:
            return None
        if level == SAMPLE:
            return key if self._files(self.families.picture(key)) > 1 else None
        caption = self.families.caption(key)
        return caption if self._is_level(caption) else None

    def members(self, level: str, name: str) -> Sequence[str]:
        """Return the keys of the training samples of a family."""
        if self.families is None or level == SAMPLE:
            return (name,)
        return [key for key in self._known_members(level, name) if key not in self.apart]

    def _known_members(self, level: str, name: str) -> Sequence[str]:
        """Return the keys of all samples of a family, with the ones that are not trained on."""
        if self.families is None or level == SAMPLE:
            return (name,)
        return self.families.picture_members(name) if level == PICTURE else self.families.caption_members(name)

    def known_pictures(self) -> int:
        """The number of training pictures, or of the pictures seen so far."""
        return self._seen if self.pictures is None else self.pictures

    def parts(self, level: str, name: str) -> int:
        """Return the divisor of the stated rate for a family, the number of its samples' levels."""
        if self.families is None:
            return 1
        if level != PICTURE or self._files(name) > 1:
            return 3
        return 1 if self.name(CAPTION, name) is None else 2

    def is_family(self, level: str, name: str) -> bool:
        """Return whether a name has several samples."""
        return self.families is not None and level != SAMPLE and (level == CAPTION or self._files(name) > 1)

    def _files(self, picture: str) -> int:
        return 1 if self.families is None else len(self.families.picture_members(picture))

    def _is_level(self, caption: str) -> bool:
        """Return whether several pictures, but not too many, share a caption."""
        assert self.families is not None
        members = self.families.caption_members(caption)
        if len(members) < 2:
            return False
        count, pictures = self._spans.get(caption, (0, 0))
        if count != len(members):
            pictures = len({self.families.picture(key) for key in members if key not in self.apart})
            self._spans[caption] = (len(members), pictures)
        if pictures > max(FEW, COMMON * self.known_pictures()):
            self.common.add(caption)
            return False
        self.common.discard(caption)
        return pictures > 1

    # Visits

    def see(self, pictures: int) -> None:
        """Set the number of pictures seen so far."""
        self._seen = pictures

    def add(self, keys: Sequence[str], values: Tensor, z: Tensor) -> dict[str, list[str]]:
        """Take in counted visits for the levels other than the picture.

        Args:
            keys: B keys.
            values: compared values `(B, columns)`, NaN without a value.
            z: the same values as z-scores.

        Returns:
            The names of the visited families, by level.
        """
        touched: dict[str, list[str]] = {}
        for level in BESIDE if self.families is not None else ():
            named = [(row, name) for row, key in enumerate(keys) if (name := self.name(level, key)) is not None]
            if named:
                rows, names = [row for row, _ in named], [name for _, name in named]
                evidence = self.beside[level]
                evidence.add(evidence.rows(names), values[rows], z[rows])
                touched[level] = list(dict.fromkeys(names))
        return touched

    # Flags

    def flag(self, level: str, name: str, step: int) -> None:
        """Flag all members of a family that crossed its threshold."""
        step = self.crossed[level].setdefault(name, step)
        members = self._known_members(level, name)
        if self._told.get((level, name)) == len(members):
            return
        self._told[level, name] = len(members)
        by = level if self.is_family(level, name) else SAMPLE
        for key in members:
            if level == SAMPLE or key not in self.apart:
                self._flag(key, by, step)

    def _flag(self, key: str, level: str, step: int) -> None:
        if key not in self.first_flagged:
            self.first_flagged[key], self.flagged_by[key] = step, level
            self.flagged_pictures.add(self.picture(key))

    def adopt(self, keys: Iterable[str]) -> None:
        """Flag the samples of `keys` whose family was flagged before they were known to belong to it."""
        for key in keys if self.families is not None else ():
            level = None if key in self.first_flagged or key in self.apart else self._family_flagged(key)
            if level is not None:
                self._flag(key, level, self.crossed[level][self.name(level, key) or key])

    def is_flagged(self, key: str) -> bool:
        """Return whether a sample, its picture or its caption was ever flagged."""
        return key in self.first_flagged or self._family_flagged(key) is not None

    def _family_flagged(self, key: str) -> str | None:
        if self.families is None:
            return None
        found = ((level, self.name(level, key)) for level in (PICTURE, CAPTION) if self.crossed[level])
        return next((level for level, name in found if name in self.crossed[level]), None)

    def flagged_pictures_of(self, keys: Collection[str]) -> int:
        """Return the number of pictures of `keys` with a flagged sample."""
        return len(self.flagged_pictures & set(self.pictures_of(keys)))

    # State

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors."""
        return {
            "beside": {level: evidence.state_dict() for level, evidence in self.beside.items()},
            "crossed": {level: dict(steps) for level, steps in self.crossed.items()},
            "flagged_by": dict(self.flagged_by),
            "seen": self._seen,
        }

    def load_state_dict(
        self, state: dict[str, Any] | None, first_flagged: dict[str, int], columns: slice = slice(None)
    ) -> None:
        """Load a saved state; None, from a run without families, leaves the levels other than the picture empty.

        Args:
            state: the state from :meth:`state_dict`.
            first_flagged: step of the first flag, by key.
            columns: the needed columns in the evidence of an earlier version.
        """
        self.first_flagged = dict(first_flagged)
        self.flagged_by = dict.fromkeys(first_flagged, SAMPLE)
        self.crossed = {SAMPLE: {}, PICTURE: dict(first_flagged), CAPTION: {}}
        if state is not None:
            for level, evidence in self.beside.items():
                evidence.load_state_dict(state["beside"][level], columns)
            self.crossed = {level: dict(steps) for level, steps in state["crossed"].items()}
            self.flagged_by, self._seen = dict(state["flagged_by"]), state["seen"]
        self.flagged_pictures = set(self.pictures_of(self.first_flagged))
