"""How likely chance alone brings back as many pictures, where a threshold rests on N prompts that cannot come back.

A threshold that lets a of N such prompts through at most is no known probability but a draw: the share of further such
prompts beyond it has the distribution Beta(a, N + 1 - a), whatever is measured. So the number beyond it among n others
is beta-binomial, and the tail of that is exact for exchangeable prompts, with few as with many (Wilks,
"Determination of Sample Sizes for Setting Tolerance Limits", Annals of Mathematical Statistics 12, 1941).
"""

from __future__ import annotations

import math


def let_through(rate: float, heldout: int) -> int:
    """How many of `heldout` prompts a threshold of a false-positive rate lets through; at least 1, the a above."""
    return max(1, math.floor(rate * (heldout + 1) + 1e-9))


def by_chance(k: int, n: int, *, allowed: int, heldout: int) -> float:
    """Probability that k or more of n prompts lie beyond a threshold by chance.

    Args:
        k: found beyond it.
        n: prompts that were asked.
        allowed: from :func:`let_through`; more than `heldout` says nothing, and the probability is 1.
        heldout: prompts that set the threshold.
    """
    if k <= 0 or allowed > heldout:
        return 1.0
    whole = math.comb(n + heldout, n)
    ways = sum(math.comb(i + allowed - 1, i) * math.comb(n - i + heldout - allowed, n - i) for i in range(k, n + 1))
    return min(1.0, ways / whole)
