"""The looks of a limited number of pictures met so far, and the search among them.

If there are too many pictures, an eighth is forgotten at a time. Pictures met once go before pictures met again, and in
both groups the ones that were not met for longest go first. Pictures met again hold at most half of the places, so that
new ones have a chance to come again. The fingerprints of forgotten pictures are remembered
(:mod:`memtrain.families.remembered_hashes`).

The threshold is calibrated on the remembered pictures (:func:`tail`) when there are :data:`ENOUGH` of them, and
whenever their number has doubled.

Cost: :data:`~memtrain.families.figures.MOST` bytes and about 30 more for each picture in a checkpoint, a kilobyte in
memory. A search is one product of a batch's figures with all remembered ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from memtrain.families.figures import similarity
from memtrain.families.remembered_hashes import RememberedHashes

ENOUGH = 256
"""The number of pictures from which a threshold can be calibrated."""
SAMPLED = 1024
"""The largest number of pictures in a calibration."""
UNCALIBRATED = 0.995
"""The threshold before calibration, for copies that differ only by rounding or by an autoencoder's draws."""
LOWEST, HIGHEST = 0.9, 0.998
ALIKE = 0.98
"""The similarity above which a pair is left out of the calibration, because it may be an unknown copy."""
WIDE, NARROW, MARGIN = 0.90, 0.97, 1.5
"""The quantiles of all pairs through which the tail is drawn, and its length relative to an exponential tail."""
HASHES = 64
"""The number of pictures with a remembered fingerprint, per look: two million by default."""
_BLOCK = 4096


class RememberedLooks:
    """A bounded memory of figures and fingerprints.

    Args:
        limit: the number of remembered looks.
        rate: the rate of false merges, for the threshold.
    """

    def __init__(self, limit: int, *, rate: float) -> None:
        self.limit, self.rate = limit, rate
        self.tail: tuple[float, float] | None = None
        self.owners: list[str] = []
        self.figures = torch.empty(0, 0, dtype=torch.int8)
        self.visits: list[int] = []
        self.last: list[int] = []
        self.forgotten = 0
        self.hashes = RememberedHashes(HASHES * limit)
        self._calibrated_at = 0
        self._fingerprints: list[int] = []
        self._owner_of: dict[int, str] = {}
        self._places: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.owners)

    def threshold(self, pictures: int | None = None) -> float:
        """Return the similarity above which a picture counts as one of these.

        Args:
            pictures: the number of compared pictures; by default all remembered ones. With few of them, a chance
                likeness is less probable.
        """
        if self.tail is None:
            return UNCALIBRATED
        count = len(self._places) if pictures is None else pictures
        return threshold(self.tail, pictures=count, rate=self.rate)

    def __contains__(self, owner: str) -> bool:
        return owner in self._places

    def places(self, owner: str) -> list[int]:
        """Return the places of a picture's looks; empty if none is remembered."""
        return self._places.get(owner, [])

    def fits(self, figures: Tensor) -> bool:
        """Return whether figures are of the remembered kind."""
        return not len(self) or figures.shape[1] == self.figures.shape[1]

    def equal(self, fingerprint: int, figure: Tensor) -> str | None:
        """Return the picture with the same values; None if there is none."""
        owner = self._owner_of.get(fingerprint)
        if owner is None:
            return self.hashes.owner(fingerprint)
        same = any(torch.equal(self.figures[place], figure) for place in self._places[owner])
        return owner if same else None

    def nearest(self, figures: Tensor, *, but: list[str | None]) -> list[tuple[str, float]]:
        """Return the most similar picture of each figure, and the similarity; `("", 0)` if nothing is remembered.

        Args:
            figures: the figures, `(B, D)` int8.
            but: the picture that does not count for each figure, which is its own.
        """
        best, place = torch.zeros(len(figures)), torch.full((len(figures),), -1)
        if not len(self):
            return [("", 0.0)] * len(figures)
        own = [self.places(name) if name is not None else [] for name in but]
        for start in range(0, len(self), _BLOCK):
            found = similarity(figures, self.figures[start : min(start + _BLOCK, len(self))])
            for row, left_out in enumerate(own):
                for one in left_out:
                    if start <= one < start + len(found[row]):
                        found[row, one - start] = 0.0
            value, index = found.max(dim=1)
            # The first of equal ones wins, however many blocks there are.
            better = value > best
            best, place = torch.where(better, value, best), torch.where(better, index + start, place)
        return [
            (self.owners[index], value) if index >= 0 else ("", 0.0)
            for index, value in zip(place.tolist(), best.tolist(), strict=True)
        ]

    def likeness(self, owner: str, figure: Tensor) -> float:
        """Return the similarity to the remembered looks of one picture."""
        own = self.figures[self._places[owner]]
        return float(similarity(figure[None], own).max())

    def add(self, owner: str, fingerprint: int, figure: Tensor, *, now: int) -> None:
        """Remember a look of a picture."""
        if len(self) >= self.limit:
            self._forget()
        place = len(self.owners)
        if place == len(self.figures):
            room = min(max(64, 2 * place), self.limit) - place
            figures = torch.zeros(room, len(figure), dtype=torch.int8)
            self.figures = torch.cat([self.figures.view(-1, len(figure)), figures])
        self.owners.append(owner)
        self._fingerprints.append(fingerprint)
        self.figures[place] = figure
        self.visits.append(0)
        self.last.append(now)
        self._places.setdefault(owner, []).append(place)
        self._owner_of.setdefault(fingerprint, owner)

    def met(self, owner: str, *, now: int) -> None:
        """Note that the picture was met."""
        for place in self.places(owner):
            self.visits[place] += 1
            self.last[place] = now

    def drop(self, owner: str) -> None:
        """Forget a picture."""
        gone = set(self.places(owner))
        self._keep([place for place in range(len(self)) if place not in gone])

    def calibrate(self) -> bool:
        """Draw a new tail of similarities if it is time, and return whether it was."""
        count = len(self._places)
        if count < max(ENOUGH, 2 * self._calibrated_at):
            return False
        self._calibrated_at = count
        first = torch.tensor([places[0] for places in self._places.values()])
        self.tail = tail(self.figures[first[torch.linspace(0, count - 1, min(count, SAMPLED)).long()]])
        return True

    def _forget(self) -> None:
        count, spare = len(self), max(1, self.limit // 8)
        order = sorted(range(count), key=self.last.__getitem__)
        once = [place for place in order if self.visits[place] <= 1]
        often = [place for place in order if self.visits[place] > 1]
        excess = max(0, len(often) - self.limit // 2)
        gone = set([*often[:excess], *once, *often[excess:]][:spare])
        self.forgotten += len(gone)
        self.hashes.add({self._fingerprints[place]: self.owners[place] for place in sorted(gone, reverse=True)})
        self._keep([place for place in range(count) if place not in gone])

    def _keep(self, places: list[int]) -> None:
        self.owners = [self.owners[place] for place in places]
        self._fingerprints = [self._fingerprints[place] for place in places]
        self.visits, self.last = [self.visits[place] for place in places], [self.last[place] for place in places]
        self.figures = self.figures[places]
        self._index()

    def _index(self) -> None:
        self._places, self._owner_of = {}, {}
        for place, (owner, fingerprint) in enumerate(zip(self.owners, self._fingerprints, strict=True)):
            self._places.setdefault(owner, []).append(place)
            self._owner_of.setdefault(fingerprint, owner)

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors."""
        count = len(self)
        return {
            "owners": list(self.owners),
            "fingerprints": torch.tensor(self._fingerprints, dtype=torch.int64),
            "figures": self.figures[:count].clone(),
            "visits": torch.tensor(self.visits, dtype=torch.int64),
            "last": torch.tensor(self.last, dtype=torch.int64),
            "tail": None if self.tail is None else list(self.tail),
            "calibrated_at": self._calibrated_at,
            "forgotten": self.forgotten,
            "hashes": self.hashes.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state."""
        self.owners, self._fingerprints = list(state["owners"]), state["fingerprints"].tolist()
        self.figures, self.visits, self.last = (
            state["figures"].clone(),
            state["visits"].tolist(),
            state["last"].tolist(),
        )
        self.tail = None if state["tail"] is None else (state["tail"][0], state["tail"][1])
        self._calibrated_at = state["calibrated_at"]
        self.forgotten = state["forgotten"]
        self.hashes = RememberedHashes(HASHES * self.limit)
        if "hashes" in state:
            self.hashes.load_state_dict(state["hashes"])
        self._index()


def tail(figures: Tensor) -> tuple[float, float] | None:
    """Find the beginning of the tail of similarities of different pictures, and its gain with each power of ten.

    Pairs from the whole collection, with few copies among them, show how similar different pictures are. This is
    extrapolated to rare pairs. Above the 90th percentile, the inverse hyperbolic tangent of the similarity grows with
    the logarithm of the share of pairs. It grows 1.5 times as fast as between the 90th and the 97th percentile.

    Args:
        figures: the figures of pictures that differ as far as is known, `(n, D)` int8.

    Returns:
        The 97th percentile and the gain, both as inverse hyperbolic tangents; None with too few different pictures.
    """
    alike = similarity(figures, figures)
    upper = torch.triu(torch.ones_like(alike, dtype=torch.bool), diagonal=1)
    # These pictures are likely copies of an earlier one.
    new = ~((alike > ALIKE) & upper).any(dim=0)
    pairs = alike[new][:, new][upper[: int(new.sum()), : int(new.sum())]].clamp(-0.9999, 0.9999).double()
    if len(pairs) < ENOUGH:
        return None
    ordered = pairs.sort().values
    wide, narrow = (math.atanh(float(ordered[int(share * (len(ordered) - 1))])) for share in (WIDE, NARROW))
    return narrow, MARGIN * (narrow - wide) / math.log10((1 - WIDE) / (1 - NARROW))


def threshold(tail: tuple[float, float], *, pictures: int, rate: float) -> float:
    """Return the similarity that a share `rate` of pictures would have to one of `pictures` others by chance.

    On the embedded clip art of 1,223 pictures at a wanted rate of 1 %, 1.7 % have a neighbor above it by pixels, and
    1.6 % by latents.
    """
    beyond = math.log10(max(1.0, (1 - NARROW) * pictures / rate))
    found = min(max(math.tanh(tail[0] + tail[1] * beyond), LOWEST), HIGHEST)
    # Machines may differ in the last digits of a hyperbolic tangent.
    return round(found, 5)
