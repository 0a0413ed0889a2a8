"""Reproduced pictures by patient, artist or whatever column of the data says to whom a picture belongs.

A picture counts as reproduced if any of its prompts is, under whatever name; a group of people counts if any of its
pictures does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from memtrain.evaluation.stages.prompts import Prompt
from memtrain.functional.ranking import proportion_interval
from memtrain.records import NEVER_TRAINED


def counted_by(
    values: Mapping[str, str],
    prompts: Sequence[Prompt],
    pictures: Sequence[str],
    *,
    reproduced: Tensor,
    level: float = 0.95,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Counts of pictures for each value, and of values.

    Args:
        values: of the column, by key.
        prompts: P prompts; those that were never trained on do not count.
        pictures: P names of their pictures.
        reproduced: `(P,)` bool.
        level: coverage of the intervals.

    Returns:
        By value `n` (pictures asked for), `reproduced`, `share` and `interval`, those of the highest share first; and
        the same of the values, of which one counts if any of its pictures does.
    """
    asked: dict[str, set[str]] = {}
    back: dict[str, set[str]] = {}
    for prompt, picture, found in zip(prompts, pictures, reproduced.tolist(), strict=True):
        value = values.get(prompt.key)
        if prompt.group in NEVER_TRAINED or value is None:
            continue
        asked.setdefault(value, set()).add(picture)
        if found:
            back.setdefault(value, set()).add(picture)
    shares = {value: _share(len(back.get(value, ())), len(names), level) for value, names in asked.items()}
    order = sorted(shares, key=lambda value: (-shares[value]["share"], -shares[value]["n"], value))
    return {value: shares[value] for value in order}, _share(len(back), len(asked), level)


def _share(k: int, n: int, level: float) -> dict[str, Any]:
    interval = list(proportion_interval(k, n, level=level))
    return {"n": n, "reproduced": k, "share": k / n if n else None, "interval": interval}
