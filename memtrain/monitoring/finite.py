"""NaN and infinity in training: seen where they begin, told with the samples of the batch.

On each batch two questions are asked on the device, of the loss and of the gradient's norm, and the answers
stay there: which batch was the first with a "no", and how many there were. Only :meth:`FiniteWatch.fault` waits for
them, every so many batches and before anything is kept. Training is at fault when its *weights* are not finite, or when
no loss of many batches in a row was: a gradient that a loss scaler (fp16) or the host itself discards leaves the
weights alone, and is none.

Cost: a pass over the gradients per optimizer step (9 ms for 8 million parameters on one CPU core, where AdamW takes
80), and one over the weights where something was found and before each checkpoint.
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
"""Batches in a row without a finite loss that are a fault although the weights are finite."""
KEPT = 4096
"""Batches whose samples are remembered at most, between two calls of :meth:`FiniteWatch.fault`."""
NAMED = 8
"""Samples that are named."""

REMEDY = "train with a lower learning rate or in full precision from the last checkpoint on, or anew; see those samples"
"""Where nothing is known of the trainer."""


@dataclass(frozen=True)
class NumberFault:
    """What is not finite, and since when.

    Attributes:
        weights: whether the weights are not finite.
        loss: number of the first batch whose loss was not, if any.
        gradient: number of the first batch whose gradient was not, if any.
        keys: of the samples in the first of these batches, where they are known.
    """

    weights: bool
    loss: int | None
    gradient: int | None
    keys: Sequence[str]

    def sentence(self) -> str:
        """What was found."""
        found = "The weights are not finite" if self.weights else f"No loss of {ALL_LOST} batches or more was finite"
        if self.loss is not None and (self.gradient is None or self.loss <= self.gradient):
            found += f": the loss was NaN or infinite first, in batch {self.loss}"
        elif self.gradient is not None:
            found += f": the gradient was NaN or infinite first, in batch {self.gradient}, where the loss was finite"
        if self.keys:
            more = f" and {len(self.keys) - NAMED} more" if len(self.keys) > NAMED else ""
            found += f"; samples in that batch: {', '.join(map(repr, self.keys[:NAMED]))}{more}"
        return found

    def error(self, *, step: int, remedy: str = REMEDY) -> TrainingError:
        """What training ends with."""
        return TrainingError(
            f"{self.sentence()} (now at step {step})",
            expected="finite numbers; no checkpoint was written since, and nothing is exported",
            remedy=remedy,
        )


class FiniteWatch:
    """Watches the numbers of one training."""

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}
        self._run: Tensor | None = None
        self._keys: dict[int, Sequence[str]] = {}

    def loss(self, loss: Tensor, *, batch: int, keys: Sequence[str] = ()) -> None:
        """See the loss of a batch; nothing waits for the device.

        Args:
            loss: of any shape.
            batch: its number.
            keys: of the samples in it.
        """
        if len(self._keys) < KEPT:
            self._keys[batch] = keys
        bad = ~torch.isfinite(loss.detach()).all()
        self._note("loss", bad, batch)
        if self._run is None or self._run.device != bad.device:
            self._run = torch.zeros((), dtype=torch.int64, device=bad.device)
        self._run = torch.where(bad, self._run + 1, 0)

    def gradient(self, parameters: Iterable[Tensor], *, batch: int) -> None:
        """See the gradient, just before the optimizer takes it; nothing waits for the device."""
        found = [_local(value.grad) for value in parameters if value.grad is not None]
        if found:
            self._note("gradient", ~torch.isfinite(get_total_norm(found)), batch)

    def _note(self, what: str, bad: Tensor, batch: int) -> None:
        first = self._first.get(what)
        if first is None or first.device != bad.device:
            first = torch.full((), -1, dtype=torch.int64, device=bad.device)
        self._first[what] = torch.where(bad & (first < 0), batch, first)

    def fault(self, weights: Iterable[Tensor], *, thorough: bool = False) -> NumberFault | None:
        """Whether training is at fault by now; waits for the device.

        Args:
            weights: that are trained.
            thorough: look at the weights even if every loss and gradient was finite, as before they are kept.

        Returns:
            None if not. What was seen is forgotten then.
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
    """The numbers of what a host trains, which is ended once when they are none.

    Args:
        host: the surroundings; None, or one that watches by itself, is left alone.
    """

    def __init__(self, host: Host | None = None) -> None:
        self._host = None if host is None or host.watches_numbers else host
        self._watch = FiniteWatch()

    def see(self, loss: Tensor, *, batch: int, keys: Sequence[str]) -> None:
        """The loss of a batch."""
        if self._host is not None:
            self._watch.loss(loss, batch=batch, keys=keys)

    def require_finite(self, *, thorough: bool) -> None:
        """Call now and then, and before anything is kept, `thorough` then.

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
    # The norm is one fast pass, and infinite for large numbers, too: then each element is looked at.
    return not found or bool(torch.isfinite(get_total_norm(found))) or all(bool(one.isfinite().all()) for one in found)


def _local(value: Tensor) -> Tensor:
    """This process's part of a sharded tensor; the values of a sparse one."""
    local: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return local.coalesce().values() if local.is_sparse else local
