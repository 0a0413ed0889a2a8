"""Held-out samples that are edited copies of training samples: each picture is compared with its own copies.

What: some pictures are easier to learn about than others (a flat drawing, few colours), in training more than any base
model tells. A copy of a picture is as easy as the picture. So a visit's z-score counts relative to the mean z-score of
the copies of its own picture, and a copy's relative to those of the other copies of that picture. What is left between
a picture and its copies is what is learned about the picture as it stands.
Source: ours, after the neighbourhood attack of Mattern et al. (ACL 2023).
Cost: a mean per copy, and all of them (at most 48) are measured at each of the monitor's updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

WINDOW = 4
"""Visits of a copy that its mean remembers: a model changes fast that is trained on few pictures."""
MOST = 48
"""Copies that are measured at an update at most, of all processes together."""


class Copies:
    """Running means of the copies' z-scores.

    Args:
        copied_from: key of the training sample by the copy's key; none without copies.
    """

    def __init__(self, copied_from: Mapping[str, str] | None = None) -> None:
        self.copied_from = dict(copied_from or {})
        self.means: dict[str, Tensor] = {}
        self.visits: dict[str, Tensor] = {}
        self._of: dict[str, list[str]] = {}
        for copy, key in self.copied_from.items():
            self._of.setdefault(key, []).append(copy)

    def at_once(self, *, processes: int) -> int:
        """Copies that each process should measure at an update, so that all of them follow the model."""
        return -(-min(len(self.copied_from), MOST) // processes)

    def relative(self, keys: Sequence[str], z: Tensor) -> Tensor:
        """z-scores of training samples `(B, columns)` relative to their copies'; others as they are."""
        if not self.copied_from:
            return z
        return torch.stack([one - self._level(key, one) for key, one in zip(keys, z, strict=True)]) if len(z) else z

    def take(self, keys: Sequence[str], z: Tensor) -> Tensor:
        """z-scores of copies `(B, columns)` relative to the other copies' of their picture; their means follow."""
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
        """Mean of the copies of a picture that were seen, `(columns,)`; 0 as long as none was."""
        names = [name for name in self._of.get(key, ()) if name != without and name in self.means]
        if not names:
            return torch.zeros_like(like)
        seen = torch.stack([self.visits[name] > 0 for name in names])
        means = torch.stack([self.means[name] for name in names])
        return torch.where(seen, means, 0.0).sum(dim=0) / seen.sum(dim=0).clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors."""
        return {"means": dict(self.means), "visits": dict(self.visits)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.means, self.visits = dict(state["means"]), dict(state["visits"])
