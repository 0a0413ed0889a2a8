"""The refinement: which of the selected neurons are needed.

Source: NeMo (Hintersdorf et al., NeurIPS 2024, section 3.3 and its published code). Greedy: from the last layer to the
first, all neurons of a layer are switched on again; where every kept seed stays below the threshold they stay on. Then
the neurons of the layers that are left are tried one at a time, again from the last layer to the first, in the order of
their list. The outcome depends on that order. Where a neuron stands twice in a list, trying it removes the first
copy only, which leaves the mask as it was.

`binary_split` (ours) tries layers likewise, then the two halves of each layer that is left, in the order of the list,
and where a half is needed its halves, down to single neurons. It needs about 2 m log₂(n / m) tries instead of n for m
needed neurons of n, and finds what the greedy refinement finds wherever the score only grows while more neurons are
switched on; benchmarks/RESULTS.md, "Finding neurons", says how often. A neuron that stands twice is tried once.

Pure decisions, no model: a :class:`Refinement` says which set is tried next, and what follows from the outcome.
"""

from __future__ import annotations

from dataclasses import dataclass

from memtrain.localization.selection import Lists


@dataclass(frozen=True)
class Group:
    """Neurons of one layer that are switched on again together."""

    layer: int
    neurons: tuple[int, ...]
    whole: bool = False


@dataclass(frozen=True)
class Refinement:
    """A point in the refinement.

    Attributes:
        lists: neurons that are off.
        groups: what is still to be tried, in this order.
        binary: whether a needed group is split in halves rather than into its neurons.
    """

    lists: Lists
    groups: tuple[Group, ...]
    binary: bool = False

    @staticmethod
    def begin(lists: Lists, *, binary: bool = False) -> Refinement:
        """Before the first layer is tried."""
        if binary:
            lists = tuple(tuple(dict.fromkeys(neurons)) for neurons in lists)
        layers = [Group(layer, neurons, whole=True) for layer, neurons in enumerate(lists) if neurons]
        return Refinement(lists, tuple(reversed(layers)), binary)

    @property
    def done(self) -> bool:
        """Whether everything has been tried."""
        return not self.groups

    def hypothesis(self) -> Lists:
        """What is off when the first group is on again: the set whose score is wanted."""
        group = self.groups[0]
        left = list(self.lists[group.layer])
        for neuron in group.neurons:
            left.remove(neuron)
        return (*self.lists[: group.layer], tuple(left), *self.lists[group.layer + 1 :])

    def after(self, below: bool) -> Refinement:
        """The next point.

        Args:
            below: whether every kept seed is less similar to itself than the threshold without the group.
        """
        group, rest = self.groups[0], self.groups[1:]
        if below:
            return Refinement(self.hypothesis(), rest, self.binary)
        count = len(group.neurons)
        if self.binary and count > 1:
            halves = (group.neurons[: count // 2], group.neurons[count // 2 :])
            parts = tuple(Group(group.layer, half) for half in halves)
            rest = (*rest, *parts) if group.whole else (*parts, *rest)
        elif group.whole and not self.binary:
            rest = (*rest, *(Group(group.layer, (neuron,)) for neuron in group.neurons))
        return Refinement(self.lists, rest, self.binary)
