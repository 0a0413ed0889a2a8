"""Median ± MAD over prompts, as in NeMo's scripts."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def median_and_mad(values: Tensor) -> dict[str, Any]:
    """Compute the median and the unscaled median absolute deviation, both as the lower of two middle values.

    Args:
        values: the values, `(n,)`; NaN is left out.

    Returns:
        `median`, `mad` (both None without values) and `n` (number of values).
    """
    values = values[~values.isnan()]
    if not values.numel():
        return {"median": None, "mad": None, "n": 0}
    median = values.median()
    return {"median": float(median), "mad": float((values - median).abs().median()), "n": values.numel()}
