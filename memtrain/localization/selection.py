"""The first selection of neurons: more and more candidates until the image does not appear.

Source: NeMo (Hintersdorf et al., NeurIPS 2024, section 3.2 and its published code). Candidates of a layer are the
neurons further than θ standard deviations from what they do for other prompts, in the order of their index, then the k
with the highest activation, in that order, of equal ones the lowest index first. From θ = 5 and k = 0 on, as long as
masking them leaves a kept seed more similar to itself than the threshold, θ falls by 0.25 and k grows by 1; the last
set tried has θ = 1.25. The published code compares θ with 1, not with its lowest value (`Settings.literal_stop`). A
neuron may stand twice in a list, which the refinement minds.

Pure decisions, no model: a :class:`Selection` says which set is tried next, and what follows from the outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from memtrain.functional.ranking import highest
from memtrain.localization.settings import Settings

Lists = tuple[tuple[int, ...], ...]
"""Neurons of each layer, in the order in which they are tried, some of them perhaps twice."""
Mask = frozenset[tuple[int, int]]
"""Layer and neuron: what is switched off, whatever the order."""


def mask_of(lists: Lists) -> Mask:
    """The set of neurons in lists."""
    return frozenset((layer, neuron) for layer, neurons in enumerate(lists) for neuron in neurons)


def candidates(z: Sequence[Tensor], activation: Sequence[Tensor], *, theta: float | None, k: int | None) -> Lists:
    """Outliers and top neurons of every layer.

    Args:
        z: per layer `(C,)`, standard deviations from other prompts.
        activation: per layer `(C,)`, mean absolute activation.
        theta: beyond which a neuron is an outlier; None for no outliers.
        k: top neurons of each layer; None for none.
    """
    found = []
    for distance, strength in zip(z, activation, strict=True):
        outliers = [] if theta is None else (distance > theta).nonzero().flatten().tolist()
        found.append((*outliers, *highest(strength.abs(), k or 0).tolist()))
    return tuple(found)


@dataclass(frozen=True)
class Selection:
    """A point in the search: a set of candidates whose score is wanted.

    Attributes:
        z: per layer `(C,)`.
        activation: per layer `(C,)`.
        settings: where θ and k begin, how they move and where they end.
        theta: of the set tried now.
        k: of the set tried now.
        done: whether the search has ended with this set.
        exhausted: whether it ended because θ or k did, whatever the score.
    """

    z: Sequence[Tensor] = field(compare=False)
    activation: Sequence[Tensor] = field(compare=False)
    settings: Settings
    theta: float | None
    k: int | None
    done: bool = False
    exhausted: bool = False

    @staticmethod
    def begin(z: Sequence[Tensor], activation: Sequence[Tensor], settings: Settings) -> Selection:
        """The first set."""
        return Selection(z, activation, settings, settings.initial_theta, settings.initial_k)

    @property
    def margin(self) -> float:
        """None: every set is held to the threshold itself."""
        return 0.0

    def hypothesis(self) -> Lists:
        """The set whose score is wanted."""
        return candidates(self.z, self.activation, theta=self.theta, k=self.k)

    def after(self, below: bool) -> Selection:
        """The next point.

        Args:
            below: whether every kept seed is at most as similar to itself as the threshold.
        """
        theta, k, settings = self.theta, self.k, self.settings
        if not below:
            if theta is not None and theta > settings.lowest_theta:
                theta -= settings.theta_step
            if k is not None:
                k += 1
        exhausted = settings.exhausted(theta, k)
        if below or exhausted:
            return replace(self, done=True, exhausted=exhausted)
        return replace(self, theta=theta, k=k)
