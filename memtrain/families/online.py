"""Families of data that no scan was made of: an index that grows with the batches, in bounded memory.

A picture that comes again under another key is a visit of its picture family, a caption that comes again one of its
caption family. Both are named by the key that came first, so what was known of that sample is what is known of the
family. A key is compared at its first visits (:data:`LATE`) with the pictures that are remembered
(:mod:`memtrain.families.remembered`): by equal values first, then by likeness above a threshold that is calibrated on
the pictures seen so far, at a stated rate of false merges; with pictures of the same caption above a lower one, because
there are few of them. A sample or a family that was taken for another picture may join an earlier family later: a
sample at its first visits, all of them whenever the threshold is calibrated (up to :data:`JOINED` pictures).

The index is a function of what it was given, in order, so processes that are given the same have the same.

Visits under one key show how differently the data's own augmentation lets one picture look. Up to :data:`LOOKS` looks
of it are remembered where they differ, and :attr:`OnlineFamilies.recognised` says how many of them the threshold would
have known again: the share of copies under other keys that can be found, if these differ by no more than that.

Memory is bounded. A look is remembered of :data:`PICTURES` pictures: among more, the stated rate could not be held by a
threshold that copies reach. Of those that are forgotten, fingerprints of two million remain, so copies whose values are
equal are known again however late they come; other copies then begin a family of their own, and what was known of the
earlier one is not lost, but no longer added to.

Cost: 120 MB beside 60 bytes for each picture that was forgotten: 200 MB at a million, of which a checkpoint holds 70
(`benchmarks/scale_stream.py`); a batch is compared with all looks that are remembered, which costs the same whatever
has passed (`benchmarks/online_families.py`). Cannot: know again a copy that is not equal in all values, of a picture
whose look has been forgotten. Nor crops and shifts of more than a few per cent, which differ more than different
pictures do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from memtrain.families.figures import HASH_BYTES, fingerprints, similarity
from memtrain.families.online_captions import OnlineCaptions
from memtrain.families.remembered import RememberedLooks
from memtrain.families.table import EXACT, NEAR, Families

JOINED = 4096
"""Pictures up to which all that are remembered are compared again when the threshold is calibrated."""
PICTURES = 32_768
"""Pictures that are remembered, by default."""
KEYS = 4
"""Keys that are remembered, per picture of the limit; and captions, one per picture."""
MEMBERS = 32
"""Copies of which the picture is remembered, per picture of the limit."""
LATE = 3
"""Visits of a sample at which its picture is compared with others."""
LOOKS = 4
"""Different looks of one picture that are remembered."""
SAME = 0.997
"""Similarity from which on a look is not worth remembering beside the one it is like."""
COMPARED = 16
"""Pictures with one caption that another with this caption is compared with at the lower threshold, the last ones."""


@dataclass(frozen=True)
class Seen:
    """What a visit shows of its sample's families.

    Attributes:
        key: of the sample.
        look: `(8 + D,)` int8 of :func:`memtrain.families.figures.looks`; None where the picture cannot be seen.
        caption: a hash; None where it is not known, or empty.
    """

    key: str
    look: Tensor | None = None
    caption: str | None = None


class OnlineFamilies:
    """A :class:`memtrain.families.table.FamilyIndex` of the samples met so far.

    Args:
        pictures: that are remembered.
        rate: share of different pictures that may be merged with another.

    Attributes:
        positives: likeness of later visits under one key to what is remembered of it.
        renamed: families that were found to be part of an earlier one, and this one, in order; whoever keeps something
            by name takes them out.
    """

    def __init__(self, *, pictures: int = PICTURES, rate: float = 0.01) -> None:
        self.pictures = pictures
        self.memory = RememberedLooks(pictures, rate=rate)
        self.positives: deque[float] = deque(maxlen=1000)
        self.renamed: list[tuple[str, str]] = []
        self._batches = 0
        self._visits: dict[str, int] = {}
        self._picture: dict[str, tuple[str, float, str]] = {}
        self._members: dict[str, list[str]] = {}
        self.captions = OnlineCaptions(pictures, picture=self.picture)

    # What is known

    def picture(self, key: str) -> str:
        """Name of the sample's picture family; its own where it stands alone, or is not known."""
        return self._picture[key][0] if key in self._picture else key

    def caption(self, key: str) -> str:
        """Name of the sample's caption family; its own where no other picture has its caption."""
        return self.captions.name(key)

    def picture_members(self, name: str) -> Sequence[str]:
        """Keys of a picture family, its name first."""
        return (name, *self._members.get(name, ()))

    def caption_members(self, name: str) -> Sequence[str]:
        """Keys of a caption family, its name first."""
        return self.captions.members(name)

    def keys(self) -> list[str]:
        """Keys of the samples that are remembered."""
        return list(dict.fromkeys([*self._visits, *self._picture]))

    def settled(self, key: str) -> bool:
        """Whether no more has to be seen of a sample: it was met often enough, or its picture was found."""
        return key in self.captions and (self._visits.get(key, 0) >= LATE or key in self._picture)

    @property
    def recognised(self) -> float | None:
        """Share of visits under one key by which the threshold would know the picture again; None if none was seen."""
        threshold = self.memory.threshold()
        found = [likeness >= threshold for likeness in self.positives]
        return sum(found) / len(found) if found else None

    def families(self, keys: Iterable[str]) -> Families:
        """What is known now of these samples, as a table of families has it."""
        known = {key: self._picture[key] for key in keys if key in self._picture}
        heads = {name for name, _, _ in known.values()}
        captions = {key: self.caption(key) for key in keys}
        shared = {name for key, name in captions.items() if key != name}
        return Families(
            {name: name for name in heads} | {key: name for key, (name, _, _) in known.items()},
            {key: name for key, name in captions.items() if name in shared},
            {key: likeness for key, (_, likeness, _) in known.items()},
            {key: reason for key, (_, _, reason) in known.items()},
        )

    # What comes in

    def add(self, batch: Sequence[Seen]) -> None:
        """Take in visits of one or more batches, of all processes, in order; of a key the first is looked at."""
        self._batches += 1
        shown = [seen for seen in batch if seen.look is not None]
        if shown:
            self._add_pictures(shown)
        for seen in batch:
            if seen.caption is not None:
                self.captions.add(seen.key, seen.caption, samples=len(self._visits))
        for key in dict.fromkeys(seen.key for seen in batch):
            self.memory.met(self.picture(key), now=self._batches)
        for seen in batch:
            # Reinserted, so that the keys stand in the order in which they were met last.
            self._visits[seen.key] = self._visits.pop(seen.key, 0) + 1
        self._forget_keys()

    def _add_pictures(self, shown: Sequence[Seen]) -> None:
        first = {seen.key: seen for seen in reversed(shown)}
        width = {len(seen.look) for seen in shown if seen.look is not None}
        compared = [
            seen for key, seen in first.items() if key not in self._picture and self._visits.get(key, 0) < LATE
        ][::-1]
        if compared and len(width) == 1:
            packed = torch.stack([seen.look for seen in compared if seen.look is not None])
            if self.memory.fits(packed[:, HASH_BYTES:]):
                self._compare(compared, packed)
        if self.memory.calibrate():
            self._join_earlier()

    def _compare(self, compared: Sequence[Seen], packed: Tensor) -> None:
        """Find the pictures of keys that have no family yet, or begin one."""
        keys = [seen.key for seen in compared]
        hashes, drawn = fingerprints(packed), packed[:, HASH_BYTES:]
        before = self.memory.nearest(drawn, but=list(keys))
        among = similarity(drawn, drawn).tril(-1).max(dim=1)
        within, earlier = among.values.tolist(), among.indices.tolist()
        strict = self.memory.threshold()
        for row, seen in enumerate(compared):
            key, known = seen.key, seen.key in self.memory
            if known:
                self._look_again(key, hashes[row], drawn[row])
            if self._members.get(key):
                continue
            name, likeness = before[row]
            if within[row] > likeness:
                likeness, name = within[row], keys[earlier[row]]
            name, threshold, reason = self.picture(name), strict, NEAR
            equal = self.memory.equal(hashes[row], drawn[row])
            if equal is not None and equal != key:
                name, likeness, reason = self.picture(equal), 1.0, EXACT
            elif likeness < threshold:
                name, likeness, threshold = self._nearest_by_caption(seen, drawn[row])
            if name and name != key and (reason == EXACT or likeness >= threshold):
                self._join(key, name, likeness, reason)
                looks = len(self.memory.places(name))
                # Also one of which nothing but a fingerprint was left, and that came again.
                if (likeness < SAME and 0 < looks < LOOKS) or (reason == EXACT and not looks):
                    self.memory.add(name, hashes[row], drawn[row], now=self._batches)
            elif not known:
                self.memory.add(key, hashes[row], drawn[row], now=self._batches)

    def _nearest_by_caption(self, seen: Seen, figure: Tensor) -> tuple[str, float, float]:
        """Of the pictures with the same caption the nearest, its likeness and the threshold among so few."""
        sharing = {self.picture(key): None for key in self.captions.with_caption(seen.caption)}
        found = [
            (self.memory.likeness(name, figure), name)
            for name in list(sharing)[-COMPARED:]
            if name != seen.key and name in self.memory
        ]
        likeness, name = max(found, default=(0.0, ""))
        return name, likeness, self.memory.threshold(len(sharing))

    def _join(self, key: str, name: str, likeness: float, reason: str) -> None:
        """Make a sample, and whatever is its family, a part of the family `name`."""
        if key in self.memory:
            self.memory.drop(key)
            self.renamed.append((key, name))
        members = self._members.setdefault(name, [])
        for member in self._members.pop(key, []):
            _, first, why = self._picture[member]
            self._picture[member] = (name, min(first, likeness), NEAR if reason == NEAR else why)
            members.append(member)
        self._picture[key] = (name, likeness, reason)
        members.append(key)

    def _join_earlier(self) -> None:
        """Compare the remembered pictures with each other, by a threshold that was not known when they came."""
        if len(self.memory) > JOINED:
            return
        for name in dict.fromkeys(self.memory.owners):
            first = self.memory.places(name)[0]
            if first:
                own, earlier = self.memory.figures[first][None], self.memory.figures[:first]
                alike = similarity(own, earlier)[0]
                likeness, place = (value.item() for value in alike.max(dim=0))
                if likeness >= self.memory.threshold():
                    self._join(name, self.memory.owners[int(place)], likeness, NEAR)

    def _look_again(self, key: str, fingerprint: int, figure: Tensor) -> None:
        """A later visit under the key by which a picture is remembered: how differently it may look."""
        if not figure.any():
            return
        likeness = self.memory.likeness(key, figure)
        self.positives.append(likeness)
        if likeness < self.memory.threshold() and len(self.memory.places(key)) < LOOKS:
            self.memory.add(key, fingerprint, figure, now=self._batches)

    def _forget_keys(self) -> None:
        beyond = len(self._visits) - KEYS * self.pictures
        for key in list(islice(self._visits, max(0, beyond))):
            del self._visits[key]
            self.captions.forget(key)
        # Of copies it stays known, as long as there is room, which picture they are.
        for key in list(islice(self._picture, max(0, len(self._picture) - MEMBERS * self.pictures))):
            name = self._picture.pop(key)[0]
            self._members[name].remove(key)
            if not self._members[name]:
                del self._members[name]

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors; the same on every process."""
        return {
            "memory": self.memory.state_dict(),
            "positives": list(self.positives),
            "batches": self._batches,
            "visits": dict(self._visits),
            "picture": {key: list(found) for key, found in self._picture.items()},
            "captions": self.captions.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.memory.load_state_dict(state["memory"])
        self.positives = deque(state["positives"], maxlen=1000)
        self._batches, self._visits = state["batches"], dict(state["visits"])
        self._picture = {key: (name, likeness, reason) for key, (name, likeness, reason) in state["picture"].items()}
        self.captions.load_state_dict(state["captions"])
        self._members = {}
        for key, (name, _, _) in self._picture.items():
            self._members.setdefault(name, []).append(key)
