"""The search for unusual value neurons of flagged pictures, from training forwards of every process.

A neuron is a candidate if its activation for a sample's caption is far from that for other captions, in their standard
deviations. This is the first stage of NeMo (Hintersdorf et al., NeurIPS 2024). The other captions belong to pictures
that are not flagged. Each counts once an epoch, on the process that saw it first, as it would with one process. Their
moments have the weight of at most 1,000 captions, so they follow a model that changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtrain.functional.moments import Moments
from memtrain.functional.neurons import neuron_z_score
from memtrain.models.transfer import HostCopy

MINIMUM_CAPTIONS = 16
"""The number of other captions below which no neuron is called unusual."""

REMEMBERED_CAPTIONS = 1000
"""The largest weight of the moments, in other captions; the error of their standard deviation is then 2 %."""


@dataclass(frozen=True)
class Visit:
    """The data of one batch on one process.

    Attributes:
        number: the number of batches since the start of training.
        rank: the number of the process.
        epoch: the epoch.
        samples: the row, the picture's name and the flag of each wanted sample.
        activation: the activations of all rows, `(B, C)`, with C neurons of all sites.
    """

    number: int
    rank: int
    epoch: int
    samples: list[tuple[int, str, bool]]
    activation: HostCopy


class NeuronSearch:
    """Collects activations, and finds the unusual neurons of flagged samples.

    Args:
        width: the number C of neurons of all sites.
        count: the number of neurons to find for each sample.
        rank: the number of this process.

    Attributes:
        found: the neurons of each flagged picture, by its name; the same on every process.
    """

    def __init__(self, width: int, *, count: int, rank: int) -> None:
        self.width, self.count, self.rank = width, count, rank
        self.found: dict[str, list[int]] = {}
        self._counted: dict[str, int] = {}
        self._moments = Moments.of(torch.zeros(0, width))
        self._visits: list[Visit] = []

    def wanted(self, keys: Sequence[str], flagged: Sequence[bool], *, epoch: int) -> list[tuple[int, str, bool]]:
        """Return row, name and flag of a batch's samples whose picture's activation is not known yet."""
        rows = enumerate(zip(keys, flagged, strict=True))
        return [(row, key, flag) for row, (key, flag) in rows if not self._known(key, flag, epoch)]

    def _known(self, key: str, flagged: bool, epoch: int) -> bool:
        return key in self.found if flagged else self._counted.get(key) == epoch

    def add(self, samples: list[tuple[int, str, bool]], activation: Tensor, *, number: int, epoch: int) -> None:
        """Keep the data of a batch until the next synchronization.

        Args:
            samples: the samples from :meth:`wanted`.
            activation: the activations of all rows, `(B, C)`, on the device.
            number: the number of batches since the start of training.
            epoch: the epoch.
        """
        self._visits.append(Visit(number, self.rank, epoch, samples, HostCopy(activation)))

    def synchronize(self, gather: Callable[[Any], list[Any]]) -> bool:
        """Merge the data of all processes.

        Args:
            gather: the function from one value of this process to those of all, in the order of ranks; called twice.

        Returns:
            Whether neurons were found.
        """
        mine = {visit.number: visit.activation for visit in self._visits}
        parts = gather([(visit.number, visit.rank, visit.epoch, visit.samples) for visit in self._visits])
        self._visits = []
        others, suspects, asked = [], {}, set()
        for number, rank, epoch, samples in sorted((visit for part in parts for visit in part), key=lambda v: v[:2]):
            for row, key, flagged in samples:
                if self._known(key, flagged, epoch) or (flagged and key in asked):
                    continue
                if flagged:
                    asked.add(key)
                else:
                    self._counted[key] = epoch
                if rank == self.rank and flagged:
                    suspects[key] = mine[number].read()[row]
                elif rank == self.rank:
                    others.append(mine[number].read()[row])
        merged = gather((Moments.of(torch.stack(others) if others else torch.zeros(0, self.width)), suspects))
        for moments, _ in merged:
            self._moments = self._moments.merge(moments)
        self._moments = self._moments.limited(REMEMBERED_CAPTIONS)
        if self._moments.count < MINIMUM_CAPTIONS:
            return False
        new = {
            key: unusual_neurons(activation, self._moments, self.count)
            for _, activations in merged
            for key, activation in activations.items()
        }
        self.found.update(new)
        return bool(new)

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors; the visits are those of this process."""
        return {
            "found": dict(self.found),
            "counted": dict(self._counted),
            "moments": dict(vars(self._moments)),
            "visits": [{**vars(visit), "activation": visit.activation.read()} for visit in self._visits],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state; visits of another process are left out."""
        self.found, self._counted = dict(state["found"]), dict(state["counted"])
        self._moments = Moments(**state["moments"])
        visits = [Visit(**{**visit, "activation": HostCopy(visit["activation"])}) for visit in state["visits"]]
        self._visits = [visit for visit in visits if visit.rank == self.rank]


def unusual_neurons(activation: Tensor, others: Moments, count: int) -> list[int]:
    """Return the neurons whose activation is furthest from other captions', in their standard deviations.

    Args:
        activation: the activations for one caption, `(C,)`.
        others: the moments over other captions.
        count: the number of neurons; neurons that do not differ at all are left out.
    """
    z = neuron_z_score(activation.double(), others.mean, others.std)
    return [neuron for neuron in z.argsort(descending=True, stable=True)[:count].tolist() if z[neuron] > 0]
