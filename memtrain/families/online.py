"""Families of data without a scan: an index in bounded memory, which grows with the batches.

A picture that comes again under another key is a visit of its picture family. A caption that comes again is a visit of
its caption family. The name of both is the key that came first, so the facts about that sample are the facts about the
family. A key is compared at its first visits (:data:`LATE`) with the remembered pictures
(:mod:`memtrain.families.remembered`). Equal values are compared first. Then the likeness is compared with a threshold,
which is calibrated on the pictures seen so far, at a stated rate of false merges. For pictures of the same caption the
threshold is lower, because there are few of them. A separate sample or family may join an earlier family later: a
sample at its first visits, and all of them at each calibration of the threshold (up to :data:`JOINED` pictures).

The index is a function of its inputs in their order, so processes with the same inputs have the same index.

Visits under one key show how much the data's own augmentation changes the look of a picture. Up to :data:`LOOKS`
different looks of it are remembered. :attr:`OnlineFamilies.recognised` is the share of these looks that the threshold
would have recognized. It is the share of copies under other keys that can be found, if these differ no more than that.

Memory is bounded. The looks of :data:`PICTURES` pictures are remembered. With more pictures, a threshold that copies
reach would break the stated rate. The fingerprints of two million forgotten pictures remain, so copies with equal
values are recognized however late they come. Other copies then begin a family of their own. The facts about the earlier
family stay, but nothing is added to them.

Cost: 120 MB, and 60 bytes for each forgotten picture. This makes 200 MB at a million pictures, of which a checkpoint
holds 70 (`benchmarks/scale_stream.py`). A batch is compared with all remembered looks, at a cost that does not grow
with the number of batches (`benchmarks/online_families.py`). Cannot: recognize a copy with different values if the look
of its picture was forgotten. Crops and shifts of more than a few per cent are not recognized either, because they
differ more than different pictures do.
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
"""The number of pictures up to which all remembered ones are compared again at a calibration of the threshold."""
PICTURES = 32_768
"""The default number of remembered pictures."""
KEYS = 4
"""The number of remembered keys, per picture of the limit; the number of captions is one per picture."""
MEMBERS = 32
"""The number of copies whose picture is remembered, per picture of the limit."""
LATE = 3
"""The number of a sample's visits at which its picture is compared with others."""
LOOKS = 4
"""The number of different looks of one picture that are remembered."""
SAME = 0.997
"""The similarity to a remembered look from which another look is not remembered."""
COMPARED = 16
"""The number of pictures with one caption (the latest ones) that are compared at the lower threshold."""


@dataclass(frozen=True)
class Seen:
    """The facts of a visit about its sample's families.

    Attributes:
        key: the key of the sample.
        look: the look from :func:`memtrain.families.figures.looks`, `(8 + D,)` int8; None if the picture is not
            visible.
        caption: the hash of the caption; None if it is not known, or empty.
    """

    key: str
    look: Tensor | None = None
    caption: str | None = None


class OnlineFamilies:
    """A :class:`memtrain.families.table.FamilyIndex` of the samples met so far.

    Args:
        pictures: the number of remembered pictures.
        rate: the share of different pictures that may be merged with another one.

    Attributes:
        positives: the likeness of later visits under one key to the key's remembered looks.
        renamed: pairs of a family that turned out to be part of an earlier one, and this earlier one, in order. Code
            that keeps facts by name removes the pairs.
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

    # Known facts

    def picture(self, key: str) -> str:
        """Return the name of the sample's picture family; its own key if it stands alone or is not known."""
        return self._picture[key][0] if key in self._picture else key

    def caption(self, key: str) -> str:
        """Return the name of the sample's caption family; its own key if no other picture has its caption."""
        return self.captions.name(key)

    def picture_members(self, name: str) -> Sequence[str]:
        """Return the keys of a picture family, starting with its name."""
        return (name, *self._members.get(name, ()))

    def caption_members(self, name: str) -> Sequence[str]:
        """Return the keys of a caption family, starting with its name."""
        return self.captions.members(name)

    def keys(self) -> list[str]:
        """Return the keys of the remembered samples."""
        return list(dict.fromkeys([*self._visits, *self._picture]))

    def settled(self, key: str) -> bool:
        """Return whether a sample needs no further look: it was met often enough, or its picture was found."""
        return key in self.captions and (self._visits.get(key, 0) >= LATE or key in self._picture)

    @property
    def recognised(self) -> float | None:
        """The share of visits under one key whose picture the threshold would recognize; None without visits."""
        threshold = self.memory.threshold()
        found = [likeness >= threshold for likeness in self.positives]
        return sum(found) / len(found) if found else None

    def families(self, keys: Iterable[str]) -> Families:
        """Return the present families of these samples as a table of families."""
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

    # New visits

    def add(self, batch: Sequence[Seen]) -> None:
        """Take in visits of one or more batches, of all processes, in order; the first visit of a key counts."""
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
            # Reinserted, so that the keys stand in the order of their last visits.
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
        """Find the pictures of keys that have no family yet, or begin new ones."""
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
                # The picture may also be one of which only a fingerprint was left.
                if (likeness < SAME and 0 < looks < LOOKS) or (reason == EXACT and not looks):
                    self.memory.add(name, hashes[row], drawn[row], now=self._batches)
            elif not known:
                self.memory.add(key, hashes[row], drawn[row], now=self._batches)

    def _nearest_by_caption(self, seen: Seen, figure: Tensor) -> tuple[str, float, float]:
        """Return the nearest picture with the same caption, its likeness, and the threshold among so few pictures."""
        sharing = {self.picture(key): None for key in self.captions.with_caption(seen.caption)}
        found = [
            (self.memory.likeness(name, figure), name)
            for name in list(sharing)[-COMPARED:]
            if name != seen.key and name in self.memory
        ]
        likeness, name = max(found, default=(0.0, ""))
        return name, likeness, self.memory.threshold(len(sharing))

    def _join(self, key: str, name: str, likeness: float, reason: str) -> None:
        """Make a sample, and its whole family, a part of the family `name`."""
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
        """Take in a later visit under the key of a remembered picture, which shows how much its look may vary."""
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
        # The picture of a copy stays known as long as there is room.
        for key in list(islice(self._picture, max(0, len(self._picture) - MEMBERS * self.pictures))):
            name = self._picture.pop(key)[0]
            self._members[name].remove(key)
            if not self._members[name]:
                del self._members[name]

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors; the same on every process."""
        return {
            "memory": self.memory.state_dict(),
            "positives": list(self.positives),
            "batches": self._batches,
            "visits": dict(self._visits),
            "picture": {key: list(found) for key, found in self._picture.items()},
            "captions": self.captions.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state."""
        self.memory.load_state_dict(state["memory"])
        self.positives = deque(state["positives"], maxlen=1000)
        self._batches, self._visits = state["batches"], dict(state["visits"])
        self._picture = {key: (name, likeness, reason) for key, (name, likeness, reason) in state["picture"].items()}
        self.captions.load_state_dict(state["captions"])
        self._members = {}
        for key, (name, _, _) in self._picture.items():
            self._members.setdefault(name, []).append(key)
