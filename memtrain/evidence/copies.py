"""Edited copies of training samples as held-out samples: each picture is compared with its own copies.

Some pictures, such as a flat drawing with few colours, are easier to learn than others, and a base model does not show
all of this. A copy of a picture is as easy as the picture. So a visit's z-score counts relative to the mean z-score of
the copies of its own picture. The z-score of a copy counts relative to the other copies of that picture. The remaining
difference between a picture and its copies comes from learning the exact picture. Source: ours, after the neighbourhood
attack of Mattern et al. (ACL 2023). Cost: a mean per copy, and all copies (at most 48) are measured at each of the
monitor's updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

WINDOW = 4
"""Number of visits that a copy's mean remembers. It is small, because a model with few pictures changes fast."""
MOST = 48
"""Largest number of copies measured at an update by all processes together."""


class Copies:
    """Running means of the copies' z-scores.

    Args:
        copied_from: the key of the training sample by the copy's key; empty without copies.
    """

    def __init__(self, copied_from: Mapping[str, str] | None = None) -> None:
        self.copied_from = dict(copied_from or {})
        self.means: dict[str, Tensor] = {}
        self.visits: dict[str, Tensor] = {}
        self._of: dict[str, list[str]] = {}
        for copy, key in self.copied_from.items():
            self._of.setdefault(key, []).append(copy)

    def at_once(self, *, processes: int) -> int:
        """Return the number of copies that each process measures at an update, so that all follow the model."""
        return -(-min(len(self.copied_from), MOST) // processes)

    def relative(self, keys: Sequence[str], z: Tensor) -> Tensor:
        """Return z-scores of training samples `(B, columns)` relative to their copies; others stay as they are."""
        if not self.copied_from:
            return z
        return torch.stack([one - self._level(key, one) for key, one in zip(keys, z, strict=True)]) if len(z) else z

    def take(self, keys: Sequence[str], z: Tensor) -> Tensor:
        """Return z-scores of copies `(B, columns)` relative to the other copies, and update the means."""
        if not self.copied_from:
            return z
        found = []
        for key, one in zip(keys, z, strict=True):
            found.append(one - self._level(self.copied_from.get(key, key), one, without=key))
            visits, mean = self.visits.get(key, torch.zeros_like(one)), self.means.get(key, torch.zeros_like(one))
            seen = one.isfinite()
            visits = visits + seen
            self.visits[key] = visits
            self.means[key] = mean + torch.where(seen, (one - mean) / visits.clamp(1, WINDOW), 0.0)
        return torch.stack(found) if found else z

    def _level(self, key: str, like: Tensor, *, without: str | None = None) -> Tensor:
        """Return the mean of a picture's measured copies, `(columns,)`; 0 without any."""
        names = [name for name in self._of.get(key, ()) if name != without and name in self.means]
        if not names:
            return torch.zeros_like(like)
        seen = torch.stack([self.visits[name] > 0 for name in names])
        means = torch.stack([self.means[name] for name in names])
        return torch.where(seen, means, 0.0).sum(dim=0) / seen.sum(dim=0).clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors."""
        return {"means": dict(self.means), "visits": dict(self.visits)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state."""
        self.means, self.visits = dict(state["means"]), dict(state["visits"])
