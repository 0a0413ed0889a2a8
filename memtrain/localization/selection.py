"""The first selection of neurons: more and more candidates until the image disappears.

Source: NeMo (Hintersdorf et al., NeurIPS 2024, section 3.2 and its published code). The candidates of a layer are first
the outliers: neurons further than θ standard deviations from their mean for other prompts, in the order of their index.
Then follow the k neurons with the highest activation, in this order, of equal ones the lowest index first. The search
begins with θ = 5 and k = 0. As long as a kept seed stays more similar to itself under the mask than the threshold, θ
falls by 0.25 and k grows by 1. The last set has θ = 1.25. The published code compares θ with 1, not with its lowest
value (`Settings.literal_stop`). A neuron can occur twice in a list, which matters for the refinement.

The module only makes decisions, without a model. A :class:`Selection` gives the next set, and the next point for an
outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from memtrain.functional.ranking import highest
from memtrain.localization.settings import Settings

Lists = tuple[tuple[int, ...], ...]
"""Neurons of each layer, in the order of their trials; a neuron can occur twice."""
Mask = frozenset[tuple[int, int]]
"""Set of masked neurons, as pairs of layer and neuron."""


def mask_of(lists: Lists) -> Mask:
    """Return the set of neurons in lists."""
    return frozenset((layer, neuron) for layer, neurons in enumerate(lists) for neuron in neurons)


def candidates(z: Sequence[Tensor], activation: Sequence[Tensor], *, theta: float | None, k: int | None) -> Lists:
    """Return the outliers and top neurons of every layer.

    Args:
        z: the distance from other prompts in standard deviations, `(C,)` for each layer.
        activation: the mean absolute activation, `(C,)` for each layer.
        theta: the distance above which a neuron is an outlier; None for no outliers.
        k: the number of top neurons of each layer; None for none.
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
        z: the distance from other prompts in standard deviations, `(C,)` for each layer.
        activation: the mean absolute activation, `(C,)` for each layer.
        settings: the settings of the search, with start, step and end of θ and k.
        theta: the value θ of the current set.
        k: the value k of the current set.
        done: whether the search has ended with this set.
        exhausted: whether it ended because θ or k reached its end, for any score.
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
        """Return the first set."""
        return Selection(z, activation, settings, settings.initial_theta, settings.initial_k)

    @property
    def margin(self) -> float:
        """No margin: every set is compared with the threshold itself."""
        return 0.0

    def hypothesis(self) -> Lists:
        """Return the set whose score is wanted."""
        return candidates(self.z, self.activation, theta=self.theta, k=self.k)

    def after(self, below: bool) -> Selection:
        """Return the next point.

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
