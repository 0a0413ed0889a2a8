"""The refinement: which of the selected neurons are needed.

Source: NeMo (Hintersdorf et al., NeurIPS 2024, section 3.3 and its published code). Greedy: from the last layer to the
first, all neurons of a layer are switched on again; where every kept seed stays below the threshold they stay on. Then
the neurons of the layers that are left are tried one at a time, again from the last layer to the first, in the order of
their list. The outcome depends on that order. Where a neuron stands twice in a list, trying it removes the first
copy only, which leaves the mask as it was.

`binary_split` (ours) tries layers likewise, then the two halves of each layer that is left, in the order of the list,
and where a half is needed its halves, down to single neurons. It needs about 2 m log₂(n / m) tries instead of n for m
needed neurons of n.

When the split is exact. Let s(A) be the score with the neurons A off, S what is off when the greedy refinement comes to
the neurons G = g₁, ..., gₖ, and t the threshold. If s(S ∖ {g₁, ..., gⱼ}) ≤ s(S ∖ G) + ε for every j, and
s(S ∖ G) < t − ε, then each of these scores is below t, so that greedy switches on g₁, then g₂, and so on to gₖ, and is
left with S ∖ G: what the split takes at once. A group that is not taken decides nothing but is split, and a single
neuron is asked for as greedy asks. By induction both end with the same neurons. Scores that only grow while more
neurons are switched on have ε = 0.

`checked_split` demands a margin of ε for groups and looks at all scores that it saw: where one set is less alike than a
part of it by more than ε (:func:`largest_bump`) the assumption is false, and greedy is followed after all, with the
scores that are known. The check sees the evaluated sets alone, so it is evidence, not proof. Where no selection was
below the threshold, the threshold is the score of the last one and leaves no room for a margin: greedy is followed at
once, and nothing is saved. That was so for all of six prompts on the random UNet of benchmarks/localization.py with 32
x 32 latents; the split without the check took 0.4 of the images there and found the same neurons for four of the six. A
neuron that stands twice is tried once, where it stands last: trying its first copy changes no mask.

Pure decisions, no model: a :class:`Refinement` says which set is tried next, and what follows from the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memtrain.localization.selection import Lists, Mask


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
        least: how far below the threshold a group has to lie that greedy would not try as a whole.
    """

    lists: Lists
    groups: tuple[Group, ...]
    binary: bool = False
    least: float = 0.0

    @staticmethod
    def begin(lists: Lists, *, binary: bool = False, margin: float = 0.0) -> Refinement:
        """Before the first layer is tried."""
        if binary:
            lists = tuple(tuple(reversed(dict.fromkeys(reversed(neurons)))) for neurons in lists)
        layers = [Group(layer, neurons, whole=True) for layer, neurons in enumerate(lists) if neurons]
        return Refinement(lists, tuple(reversed(layers)), binary, margin)

    @property
    def done(self) -> bool:
        """Whether everything has been tried."""
        return not self.groups

    @property
    def margin(self) -> float:
        """How far below the threshold the set tried next has to lie."""
        group = self.groups[0]
        return 0.0 if group.whole or len(group.neurons) == 1 else self.least

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
            return Refinement(self.hypothesis(), rest, self.binary, self.least)
        count = len(group.neurons)
        if self.binary and count > 1:
            halves = (group.neurons[: count // 2], group.neurons[count // 2 :])
            parts = tuple(Group(group.layer, half) for half in halves)
            rest = (*rest, *parts) if group.whole else (*parts, *rest)
        elif group.whole and not self.binary:
            rest = (*rest, *(Group(group.layer, (neuron,)) for neuron in group.neurons))
        return Refinement(self.lists, rest, self.binary, self.least)


def largest_bump(scored: Mapping[Mask, Mapping[int, float]]) -> float:
    """By how much a seed is more alike with more neurons off at most, over all pairs of which one holds the other.

    Args:
        scored: sets of neurons that are off, and of each seed its similarity to itself.
    """
    found, sets = 0.0, sorted(scored, key=len)
    for place, fewer in enumerate(sets):
        for more in sets[place + 1 :]:
            if fewer < more:
                both = scored[fewer].keys() & scored[more].keys()
                found = max([found, *(scored[more][seed] - scored[fewer][seed] for seed in both)])
    return found
