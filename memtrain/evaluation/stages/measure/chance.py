"""Probability that chance alone brings back as many pictures, for a threshold set by N unseen prompts.

A threshold that at most a of N unseen prompts pass has no known false-positive rate. The rate is random: it has the
distribution Beta(a, N + 1 - a) for any measure. So the number of n other unseen prompts that pass is beta-binomial. The
tail of this distribution is exact for exchangeable prompts, for few and for many (Wilks, "Determination of Sample Sizes
for Setting Tolerance Limits", Annals of Mathematical Statistics 12, 1941).
"""

from __future__ import annotations

import math


def let_through(rate: float, heldout: int) -> int:
    """Return the a of the module: how many of `heldout` prompts pass a threshold of this rate, at least 1."""
    return max(1, math.floor(rate * (heldout + 1) + 1e-9))


def by_chance(k: int, n: int, *, allowed: int, heldout: int) -> float:
    """Return the probability that k or more of n prompts pass a threshold by chance.

    Args:
        k: the number of prompts that pass.
        n: the number of sampled prompts.
        allowed: the number from :func:`let_through`. The probability is 1 if it exceeds `heldout`.
        heldout: the number of prompts that set the threshold.
    """
    if k <= 0 or allowed > heldout:
        return 1.0
    whole = math.comb(n + heldout, n)
    ways = sum(math.comb(i + allowed - 1, i) * math.comb(n - i + heldout - allowed, n - i) for i in range(k, n + 1))
    return min(1.0, ways / whole)
