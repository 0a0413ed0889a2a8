"""The loss of the whole training set and of held-out samples over the steps of a run.

The curve has the mean compared values (log ratios to the base model) of all training samples and of all held-out
samples, in windows of steps. While both fall, the model learns the subject and the style. From the step at which only
the training loss falls, it learns these samples. With few pictures, this step answers the question "when do I stop?",
even if single samples have too few visits for a flag. Source: ours. Loss-threshold membership tests rest on the gap
between the two (Yeom et al., "Privacy Risk in Machine Learning", CSF 2018). Here it is measured over a whole set. Each
timestep bucket has its own mean, so the timesteps of a window do not matter. Cost: a few sums. At most :data:`MOST`
windows are kept, and with more windows each two become one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST = 48
"""Largest number of kept windows."""
FIRST = 5
"""Number of steps in a window at first."""
TRAINED, HELD = 0, 1


@dataclass(frozen=True)
class Point:
    """One window.

    Attributes:
        step: last optimizer step of the window.
        training: mean change on training samples.
        heldout: mean change on held-out samples; NaN without any in this window.
    """

    step: int
    training: float
    heldout: float


class SetCurve:
    """Sums by window of steps, timestep bucket and column, of training and held-out samples.

    Args:
        columns: number of values of a visit.
        buckets: number of timestep buckets.
    """

    def __init__(self, columns: int, buckets: int) -> None:
        self.width = FIRST
        self.step = 0
        self.total = torch.zeros(0, 2, buckets, columns, dtype=torch.float64)
        self.count = torch.zeros(0, 2, buckets, columns, dtype=torch.float64)

    def add(self, buckets: Sequence[int | None], values: Tensor, step: int) -> None:
        """Take in visits of training samples `(B, columns)`, NaN without a value, after `step` optimizer steps."""
        self.step = max(self.step, step)
        self._add(TRAINED, buckets, values)

    def add_heldout(self, buckets: Sequence[int | None], values: Tensor) -> None:
        """Take in visits of held-out samples at the last step."""
        self._add(HELD, buckets, values)

    def _add(self, which: int, buckets: Sequence[int | None], values: Tensor) -> None:
        while self.step // self.width >= MOST:
            self.width *= 2
            self.total, self.count = _in_pairs(self.total), _in_pairs(self.count)
        window = self.step // self.width
        if missing := max(0, window + 1 - len(self.total)):
            more = torch.zeros(missing, *self.total.shape[1:], dtype=torch.float64)
            self.total, self.count = torch.cat([self.total, more]), torch.cat([self.count, more])
        counted = [index for index, bucket in enumerate(buckets) if bucket is not None]
        if counted:
            place = torch.tensor([int(buckets[index] or 0) for index in counted])
            known = values[counted].double()
            seen = known.isfinite()
            self.total[window, which].index_add_(0, place, torch.where(seen, known, 0.0))
            self.count[window, which].index_add_(0, place, seen.double())

    def points(self, column: int) -> list[Point]:
        """Return the curve of one column, with the base model and all windows with training samples."""
        found = []
        for window, (total, count) in enumerate(zip(self.total[..., column], self.count[..., column], strict=True)):
            # Buckets without visits are left out. The mean over bucket means gives each bucket the same weight.
            training, heldout = (
                float((total[which] / count[which])[count[which] > 0].mean()) if count[which].any() else math.nan
                for which in (TRAINED, HELD)
            )
            if not math.isnan(training):
                found.append(Point(min((window + 1) * self.width - 1, self.step), training, heldout))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors."""
        return {"width": self.width, "step": self.step, "total": self.total, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state."""
        self.width, self.step, self.total, self.count = (state[name] for name in ("width", "step", "total", "count"))


def _in_pairs(sums: Tensor) -> Tensor:
    if len(sums) % 2:
        sums = torch.cat([sums, torch.zeros_like(sums[:1])])
    return sums[0::2] + sums[1::2]
