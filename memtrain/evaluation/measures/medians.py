"""Median ± MAD over prompts, as NeMo's scripts print it."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def median_and_mad(values: Tensor) -> dict[str, Any]:
    """Median and median absolute deviation from it, both the lower of two middle values, the latter unscaled.

    Args:
        values: `(n,)`, NaN where there is none.

    Returns:
        `median`, `mad` (None without values) and `n`, how many values there are.
    """
    values = values[~values.isnan()]
    if not values.numel():
        return {"median": None, "mad": None, "n": 0}
    median = values.median()
    return {"median": float(median), "mad": float((values - median).abs().median()), "n": values.numel()}
