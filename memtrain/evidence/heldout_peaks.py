"""The highest score that each held-out sample ever reached, from which the threshold is set."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from memtrain.evidence.running_means import Evidence

HIGHEST, TURN = "highest", "turn"
"""Names of the values by row of the evidence: the score, and the place in the order of having enough visits."""


class HeldoutPeaks:
    """Highest scores of held-out samples, kept by row of their evidence.

    Args:
        heldout: the evidence of the held-out samples; None if they do not calibrate.
    """

    def __init__(self, heldout: Evidence | None) -> None:
        self.heldout = Evidence(1) if heldout is None else heldout
        self.heldout.arrays.add(HIGHEST, -math.inf)
        self.heldout.arrays.add(TURN, -1, dtype=torch.long)

    def add(self, scores: Tensor, counted: Tensor) -> None:
        """Take in scores of all held-out samples `(n,)`; `counted` `(n,)` bool marks samples with enough visits."""
        highest, turn = self.heldout.arrays[HIGHEST], self.heldout.arrays[TURN]
        highest.copy_(torch.where(counted, highest.maximum(scores), highest))
        new = (counted & (turn < 0)).nonzero()[:, 0]
        if len(new):
            turn[new] = torch.arange(len(new)) + turn.max() + 1

    def rows(self) -> Tensor:
        """Return the rows of samples with enough visits, in the order in which they reached them, `(n,)`."""
        turn = self.heldout.arrays[TURN]
        known = (turn >= 0).nonzero()[:, 0]
        return known[turn[known].argsort()]

    def scores(self) -> Tensor:
        """Return the highest scores of :meth:`rows`, `(n,)`."""
        return self.heldout.arrays[HIGHEST][self.rows()]

    def by_key(self) -> dict[str, float]:
        """Return the highest scores by key."""
        return dict(zip((self.heldout.names[row] for row in self.rows().tolist()), self.scores().tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Tensors."""
        return {"rows": self.rows(), "scores": self.scores()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state after the state of the evidence; an earlier version has scores by name."""
        if "scores" not in state or not isinstance(state["scores"], Tensor):
            rows = torch.tensor([self.heldout.row[key] for key in state], dtype=torch.long)
            state = {"rows": rows, "scores": torch.tensor(list(state.values()), dtype=torch.float64)}
        self.heldout.arrays[HIGHEST][state["rows"]] = state["scores"]
        self.heldout.arrays[TURN][state["rows"]] = torch.arange(len(state["rows"]))
