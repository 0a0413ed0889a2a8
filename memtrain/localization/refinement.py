"""The refinement: it finds the selected neurons that are needed.

Source: NeMo (Hintersdorf et al., NeurIPS 2024, section 3.3 and its published code). `greedy` switches all neurons of a
layer on again, from the last layer to the first. They stay on if every kept seed stays below the threshold. Then it
tries the neurons of the remaining layers one at a time, again from the last layer to the first, in the order of their
list. The outcome depends on this order. If a neuron occurs twice in a list, its trial removes only the first copy,
which does not change the mask.

`binary_split` (ours) tries layers in the same way, then the two halves of each remaining layer, in the order of the
list. If a half is needed, it tries the halves of this half, down to single neurons. It needs about 2 m log₂(n / m)
trials instead of n for m needed neurons of n.

Exactness of the split: let s(A) be the score with the neurons A off. Let S be the neurons that are off when the greedy
refinement comes to the neurons G = g₁, ..., gₖ, and t the threshold. Assume s(S ∖ {g₁, ..., gⱼ}) ≤ s(S ∖ G) + ε for
every j, and s(S ∖ G) < t − ε. Then each of these scores is below t. So greedy switches on g₁, then g₂, and so on to gₖ,
and ends with S ∖ G, which the split reaches in one trial. A needed group decides nothing and is split, and single
neurons are tried like in greedy. By induction both end with the same neurons. Scores that only grow with more neurons
switched on have ε = 0.

`checked_split` requires a margin of ε for groups, and checks all scores that it saw. If a set is more similar than a
subset of it by more than ε (:func:`largest_bump`), the assumption is false, and greedy runs with the known scores. The
check sees only the evaluated sets, so it is evidence, not proof. If no selection was below the threshold, the threshold
is the score of the last selection, without room for a margin. Greedy then runs at once, without savings. This was so
for all of six prompts on the random UNet of benchmarks/localization.py with 32 x 32 latents. There the split without
the check took 0.4 of the images, and found the same neurons for four of the six. A neuron that occurs twice is tried
once, at its last place, because the trial of its first copy changes no mask.

The module only makes decisions, without a model. A :class:`Refinement` gives the next set, and the next point for an
outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memtrain.localization.selection import Lists, Mask


@dataclass(frozen=True)
class Group:
    """Neurons of one layer that are switched on together."""

    layer: int
    neurons: tuple[int, ...]
    whole: bool = False


@dataclass(frozen=True)
class Refinement:
    """A point in the refinement.

    Attributes:
        lists: the neurons that are off.
        groups: the groups to try, in their order.
        binary: whether a needed group is split in halves, instead of into its neurons.
        least: the required distance below the threshold for a group that greedy would not try as a whole.
    """

    lists: Lists
    groups: tuple[Group, ...]
    binary: bool = False
    least: float = 0.0

    @staticmethod
    def begin(lists: Lists, *, binary: bool = False, margin: float = 0.0) -> Refinement:
        """Return the point before the first trial."""
        if binary:
            lists = tuple(tuple(reversed(dict.fromkeys(reversed(neurons)))) for neurons in lists)
        layers = [Group(layer, neurons, whole=True) for layer, neurons in enumerate(lists) if neurons]
        return Refinement(lists, tuple(reversed(layers)), binary, margin)

    @property
    def done(self) -> bool:
        """Whether there are no groups left to try."""
        return not self.groups

    @property
    def margin(self) -> float:
        """Required distance below the threshold for the next set."""
        group = self.groups[0]
        return 0.0 if group.whole or len(group.neurons) == 1 else self.least

    def hypothesis(self) -> Lists:
        """Return the set whose score is wanted: all neurons that are off without the first group."""
        group = self.groups[0]
        left = list(self.lists[group.layer])
        for neuron in group.neurons:
            left.remove(neuron)
        return (*self.lists[: group.layer], tuple(left), *self.lists[group.layer + 1 :])

    def after(self, below: bool) -> Refinement:
        """Return the next point.

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
    """Return the largest growth of a seed's similarity with more neurons off, over all pairs of a set and its subset.

    Args:
        scored: the sets of neurons that are off, with the similarity of each seed to itself.
    """
    found, sets = 0.0, sorted(scored, key=len)
    for place, fewer in enumerate(sets):
        for more in sets[place + 1 :]:
            if fewer < more:
                both = scored[fewer].keys() & scored[more].keys()
                found = max([found, *(scored[more][seed] - scored[fewer][seed] for seed in both)])
    return found
