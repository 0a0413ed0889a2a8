"""Samples held out by weight, which are in the host's batches but are not trained on.

A share of the keys, chosen by a hash of the key only, gets weight 0. So the choice is the same on every process, after
every resume and on every machine, and it needs no list of samples. Their visits have the host's own noise, timesteps,
crops and loss, under the current model. In any trainer, they show the scores of samples that the model was not trained
on. If the run knows its families, the files of one picture are held out together, by the hash of the picture's name.

Cost: this share of the data is not trained on. Suggested: a tenth. There is no threshold with fewer than eight
pictures. Cannot: keep copies of one image together if they have different keys and no scan found them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from memtrain.families.table import FamilyIndex
from memtrain.functional.keyed_draws import seed_of


@dataclass(frozen=True)
class HeldoutKeys:
    """The rule that chooses the samples.

    Attributes:
        share: share of the keys, from 0 to below 1.
        never: keys that are always trained on.
        families: the families of samples that show one picture; None without a scan.
    """

    share: float = 0.0
    never: Collection[str] = ()
    families: FamilyIndex | None = None

    def picture(self, key: str) -> str:
        """Return the name of a sample's picture."""
        return key if self.families is None else self.families.picture(key)

    def __contains__(self, key: object) -> bool:
        if not self.share or not isinstance(key, str) or key in self.never:
            return False
        return seed_of("held out", self.picture(key)) < self.share * 2**62

    def mask(self, keys: Sequence[str]) -> list[bool]:
        """Return B values, true if a sample is held out; empty if none is."""
        chosen = [key in self for key in keys]
        return chosen if any(chosen) else []
