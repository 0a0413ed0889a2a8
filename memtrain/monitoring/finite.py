"""NaN and infinity in training. The error names the batch in which they begin, and its samples.

On each batch, the device checks whether the loss and the norm of the gradient are finite. It keeps the number of the
first bad batch and the number of bad batches. Only :meth:`FiniteWatch.fault` waits for these results, every few batches
and before a file is written. Training is at fault if its *weights* are not finite, or if no loss of many batches in a
row was finite. A gradient that a loss scaler (fp16) or the host itself discards does not change the weights, and is no
fault.

Cost: a pass over the gradients per optimizer step (9 ms for 8 million parameters on one CPU core; AdamW takes 80 ms). A
pass over the weights follows after a bad batch and before each checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from memtrain.errors import TrainingError
from memtrain.monitoring.host import Host

ALL_LOST = 8
"""Number of batches in a row without a finite loss that are a fault although the weights are finite."""
KEPT = 4096
"""Largest number of batches with remembered samples between two calls of :meth:`FiniteWatch.fault`."""
NAMED = 8
"""Number of samples that an error names."""

REMEDY = (
    "check these samples, and train from the last checkpoint or again, with a lower learning rate or full precision"
)
"""The remedy if the trainer is unknown."""


@dataclass(frozen=True)
class NumberFault:
    """The values that are not finite, and the batch of their first appearance.

    Attributes:
        weights: whether the weights are not finite.
        loss: number of the first batch whose loss was not finite, if any.
        gradient: number of the first batch whose gradient was not finite, if any.
        keys: keys of the samples in the first of these batches, if known.
    """

    weights: bool
    loss: int | None
    gradient: int | None
    keys: Sequence[str]

    def sentence(self) -> str:
        """Return the fault in words."""
        found = "The weights are not finite" if self.weights else f"No loss of {ALL_LOST} batches or more was finite"
        if self.loss is not None and (self.gradient is None or self.loss <= self.gradient):
            found += f". The loss became NaN or infinite first, in batch {self.loss}"
        elif self.gradient is not None:
            found += f". The gradient became NaN or infinite first, in batch {self.gradient}, where the loss was finite"
        if self.keys:
            more = f" and {len(self.keys) - NAMED} more" if len(self.keys) > NAMED else ""
            found += f"; samples in that batch: {', '.join(map(repr, self.keys[:NAMED]))}{more}"
        return found

    def error(self, *, step: int, remedy: str = REMEDY) -> TrainingError:
        """Return the error that ends the training."""
        return TrainingError(
            f"{self.sentence()} (now at step {step})",
            expected="finite numbers; no checkpoint was written since then, and nothing is exported",
            remedy=remedy,
        )


class FiniteWatch:
    """Watches the numbers of one training."""

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}
        self._run: Tensor | None = None
        self._keys: dict[int, Sequence[str]] = {}

    def loss(self, loss: Tensor, *, batch: int, keys: Sequence[str] = ()) -> None:
        """Check the loss of a batch without waiting for the device.

        Args:
            loss: the loss, of any shape.
            batch: the number of the batch.
            keys: the keys of the samples in the batch.
        """
        if len(self._keys) < KEPT:
            self._keys[batch] = keys
        bad = ~torch.isfinite(loss.detach()).all()
        self._note("loss", bad, batch)
        if self._run is None or self._run.device != bad.device:
            self._run = torch.zeros((), dtype=torch.int64, device=bad.device)
        self._run = torch.where(bad, self._run + 1, 0)

    def gradient(self, parameters: Iterable[Tensor], *, batch: int) -> None:
        """Check the gradient just before the optimizer step, without waiting for the device."""
        found = [_local(value.grad) for value in parameters if value.grad is not None]
        if found:
            self._note("gradient", ~torch.isfinite(get_total_norm(found)), batch)

    def _note(self, what: str, bad: Tensor, batch: int) -> None:
        first = self._first.get(what)
        if first is None or first.device != bad.device:
            first = torch.full((), -1, dtype=torch.int64, device=bad.device)
        self._first[what] = torch.where(bad & (first < 0), batch, first)

    def fault(self, weights: Iterable[Tensor], *, thorough: bool = False) -> NumberFault | None:
        """Return the fault of the training so far; waits for the device.

        Args:
            weights: the trained weights.
            thorough: whether to check the weights even if every loss and gradient was finite, as before they are saved.

        Returns:
            None without a fault. The results so far are forgotten then.
        """
        seen = {what: int(first) for what, first in self._first.items()}
        bad = {what: batch for what, batch in seen.items() if batch >= 0}
        if not bad and not thorough:
            self._keys.clear()
            return None
        broken = not all_finite(weights)
        lost = self._run is not None and int(self._run) >= ALL_LOST
        if broken or lost:
            first = min(bad.values(), default=-1)
            return NumberFault(broken, bad.get("loss"), bad.get("gradient"), self._keys.get(first, ()))
        if self._run is None or not int(self._run):
            self._first.clear()
            self._keys.clear()
        return None


class HostNumbers:
    """Checks the numbers of a host's training, and ends it once at a fault.

    Args:
        host: the host of the run. None, or a host that checks its numbers itself, is not checked.
    """

    def __init__(self, host: Host | None = None) -> None:
        self._host = None if host is None or host.watches_numbers else host
        self._watch = FiniteWatch()

    def see(self, loss: Tensor, *, batch: int, keys: Sequence[str]) -> None:
        """Check the loss of a batch."""
        if self._host is not None:
            self._watch.loss(loss, batch=batch, keys=keys)

    def require_finite(self, *, thorough: bool) -> None:
        """Call it at regular steps, and with `thorough` before a file is written.

        Raises:
            TrainingError: if training is at fault.
        """
        host = self._host
        if host is None:
            return
        weights = [value for value in host.module.parameters() if value.requires_grad]
        fault = self._watch.fault(weights, thorough=thorough)
        if fault is not None:
            self._host = None
            raise fault.error(step=host.step)


def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether every element of all tensors is a number; waits for the device once."""
    found = [_local(value.detach()) for value in values if value.is_floating_point()]
    found = [value for value in found if value.numel()]
    # The norm is one fast pass. It is infinite for large numbers too, and then each element is checked.
    return not found or bool(torch.isfinite(get_total_norm(found))) or all(bool(one.isfinite().all()) for one in found)


def _local(value: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, or the values of a sparse tensor."""
    local: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return local.coalesce().values() if local.is_sparse else local
