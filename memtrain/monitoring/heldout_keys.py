"""Held out by weight: samples that are in the host's batches, and that nothing is learnt from.

A share of the keys, chosen by a hash of the key alone, gets weight 0. So the choice is the same on every process, after
every resume and on every machine, and needs no list of samples. Their visits have the host's own noise, timesteps,
crops and loss, under the model as it is: what samples look like that the model was not trained on, in any trainer.

What is chosen is the picture: the files of one are held out together, by the hash of its name, where the run knows its
families.

Cost: that share of the data is not trained on. Suggested: a tenth; below eight pictures there is no threshold. Cannot:
keep copies of one image together that have different keys, where nobody looked for them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from memtrain.families.table import FamilyIndex
from memtrain.functional.keyed_draws import seed_of


@dataclass(frozen=True)
class HeldoutKeys:
    """The rule.

    Attributes:
        share: of the keys, from 0 to below 1.
        never: keys that are trained on in any case.
        families: which samples are one picture; None where nobody looked.
    """

    share: float = 0.0
    never: Collection[str] = ()
    families: FamilyIndex | None = None

    def picture(self, key: str) -> str:
        """Name of a sample's picture."""
        return key if self.families is None else self.families.picture(key)

    def __contains__(self, key: object) -> bool:
        if not self.share or not isinstance(key, str) or key in self.never:
            return False
        return seed_of("held out", self.picture(key)) < self.share * 2**62

    def mask(self, keys: Sequence[str]) -> list[bool]:
        """True where a sample is held out, B; empty if none is."""
        chosen = [key in self for key in keys]
        return chosen if any(chosen) else []
