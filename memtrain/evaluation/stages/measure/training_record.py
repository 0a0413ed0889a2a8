"""Flags and signals of a training against planted samples: AUROC per signal, precision and recall of flags.

The truth about a sample is its group: `planted` samples are the positives, and `unique` samples the negatives. Other
groups (templates, canaries, pictures of several files) are neither. The share of their flagged samples is reported
beside. In the figures by picture, a picture is flagged if any of its files is flagged, and planted if any is planted.

The evidence table has one row per training sample. Every floating-point column that is not bookkeeping is a signal. A
signal without a declared direction is reported in the direction that separates better, together with this direction.
Such a figure is optimistic, and the more so with fewer planted samples and more columns.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from memtrain.errors import RecordError
from memtrain.functional.ranking import auroc, bootstrap_interval, proportion_interval, true_positive_rate
from memtrain.records import PLANTED, REPEATED, UNIQUE

DIRECTIONS: Mapping[str, str] = {"denoising_loss": "low", "score": "high"}
"""Published direction of a signal for memorized samples, by column or by the part of a column before its first dot."""
BOOKKEEPING = frozenset(
    {
        "key",
        "caption",
        "group",
        "split",
        "visits_per_epoch",
        "visits",
        "p_value",
        "flagged",
        "first_flagged_step",
        "flagged_share",
        "skipped",
    }
)
"""Columns that are not signals."""
FALSE_POSITIVE_RATE = 0.01
"""False-positive rate at which true-positive rates of signals are read, as usual for tests of memorization."""


def compare_with_truth(
    evidence: pa.Table,
    *,
    directions: Mapping[str, str] | None = None,
    pictures: Mapping[str, str] | None = None,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, Any]:
    """Compare signals and flags with the truth: samples of the group `planted` were planted.

    Args:
        evidence: the evidence table with one row per training sample: `key`, `visits_per_epoch`, and optionally
            `group`, `flagged`, `first_flagged_step`, `skipped` and signals. Without groups, samples with more than one
            visit per epoch count as planted.
        directions: the directions by column or prefix (`low`, `high` or `unknown`), in addition to :data:`DIRECTIONS`.
        pictures: the name of the picture of each sample, by key; by default, each sample is a picture of its own.
        seed: the seed of the bootstrap.
        resamples: the number of resamples of the bootstrap.
        level: the coverage of the intervals.

    Returns:
        The counts `planted` and `unique`, `signals` (best first), `flags` and `skipped`. The last two are None if the
        table lacks the column, and `signals` is empty if no sample was planted. `flags.groups` has the share of
        flagged samples of each further group. `flags.pictures` has the same figures by picture.

    Raises:
        RecordError: if a column is missing.
    """
    missing = {"key", "visits_per_epoch"} - set(evidence.column_names)
    if missing:
        raise RecordError(
            f"The evidence table lacks {sorted(missing)}, and has {evidence.column_names}",
            expected="records/evidence.parquet of a run",
            remedy="check the path",
        )
    names = [(pictures or {}).get(key, key) for key in evidence.column("key").to_pylist()]
    groups = _groups(evidence, names)
    flags = None
    if "flagged" in evidence.column_names:
        flags = _flags(evidence, groups, level=level)
        flags["pictures"] = _flags(*_by_picture(evidence, groups, names), level=level)
    evidence = evidence.filter(pa.array([group in (PLANTED, UNIQUE) for group in groups], pa.bool_()))
    planted = torch.tensor([group == PLANTED for group in groups if group in (PLANTED, UNIQUE)], dtype=torch.bool)
    known = {**DIRECTIONS, **(directions or {})}
    signals = []
    for column in evidence.schema:
        if pa.types.is_floating(column.type) and column.name not in BOOKKEEPING:
            declared = known.get(column.name, known.get(column.name.split(".")[0], "unknown"))
            values = _column(evidence, column.name)
            found = _signal(values, planted, declared, seed=seed, resamples=resamples, level=level)
            if found is not None:
                signals.append({"column": column.name, **found})
    signals.sort(key=lambda signal: -float(signal["auroc"]))
    return {
        "planted": int(planted.sum()),
        "unique": int((~planted).sum()),
        "signals": signals,
        "flags": flags,
        "skipped": _skipped(evidence, planted) if "skipped" in evidence.column_names else None,
    }


def flags_and_copies(evidence: pa.Table, reproduced: Mapping[str, bool]) -> dict[str, dict[str, int]] | None:
    """Compare the flags of the sampled training prompts with the prompts that the finished model reproduces.

    Args:
        evidence: the evidence table, as for :func:`compare_with_truth`.
        reproduced: whether each sampled prompt is reproduced, by key; keys that are not in the table are left out.

    Returns:
        Under `flagged` and `not_flagged` the number of prompts `n`, and the number `reproduced`; None without flags.
    """
    if "flagged" not in evidence.column_names:
        return None
    flagged = dict(zip(evidence.column("key").to_pylist(), evidence.column("flagged").to_pylist(), strict=True))
    counts = {"flagged": {"n": 0, "reproduced": 0}, "not_flagged": {"n": 0, "reproduced": 0}}
    for key, copied in reproduced.items():
        if key in flagged:
            side = counts["flagged" if flagged[key] else "not_flagged"]
            side["n"] += 1
            side["reproduced"] += int(copied)
    return counts


def _groups(evidence: pa.Table, pictures: Sequence[str]) -> list[str]:
    """Return the group of each row: from the table, or else from its visits and its picture's files."""
    named = evidence.column("group").to_pylist() if "group" in evidence.column_names else [None] * len(evidence)
    visits = _column(evidence, "visits_per_epoch").tolist()
    groups = [group or (PLANTED if count > 1 else UNIQUE) for group, count in zip(named, visits, strict=True)]
    files = Counter(pictures)
    return [
        REPEATED if group == UNIQUE and files[name] > 1 else group for group, name in zip(groups, pictures, strict=True)
    ]


def _by_picture(evidence: pa.Table, groups: Sequence[str], pictures: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """Return `flagged` and `first_flagged_step` by picture, and its group: REPEATED only if no file has another."""
    flagged = _column(evidence, "flagged") == 1
    steps = torch.full((len(evidence),), torch.nan)
    if "first_flagged_step" in evidence.column_names:
        steps = _column(evidence, "first_flagged_step")
    found: dict[str, dict[str, Any]] = {}
    for row, (name, group) in enumerate(zip(pictures, groups, strict=True)):
        one = found.setdefault(name, {"group": group, "flagged": False, "first_flagged_step": None})
        if one["group"] == REPEATED:
            one["group"] = group
        if flagged[row]:
            one["flagged"] = True
            step, first = float(steps[row]), one["first_flagged_step"]
            if math.isfinite(step) and (first is None or step < first):
                one["first_flagged_step"] = step
    columns = {name: [one[name] for one in found.values()] for name in ("flagged", "first_flagged_step")}
    table = pa.table(
        {
            "flagged": pa.array(columns["flagged"], pa.bool_()),
            "first_flagged_step": pa.array(columns["first_flagged_step"], pa.float64()),
        }
    )
    return table, [one["group"] for one in found.values()]


def _column(evidence: pa.Table, name: str) -> Tensor:
    """Return a column as `(n,)` fp64, with nulls as NaN."""
    values = evidence.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.array(values, dtype=np.float64))


def _signal(
    values: Tensor, planted: Tensor, declared: str, *, seed: int, resamples: int, level: float
) -> dict[str, Any] | None:
    """Compare one signal with the truth; None if a class has no value."""
    there = torch.isfinite(values)
    values, truth = values[there], planted[there]
    if not truth.any() or truth.all():
        return None
    high = float(auroc(values, truth))
    observed = "high" if high >= 0.5 else "low"
    used = observed if declared == "unknown" else declared
    oriented = values if used == "high" else -values
    interval = bootstrap_interval(auroc, oriented, truth, seed=seed, resamples=resamples, level=level)
    return {
        "auroc": high if used == "high" else 1 - high,
        "interval": list(interval),
        "true_positive_rate": float(true_positive_rate(oriented, truth, false_positive_rate=FALSE_POSITIVE_RATE)),
        "false_positive_rate": FALSE_POSITIVE_RATE,
        "declared": declared,
        "observed": observed,
        "auroc_of_higher": high,
        "without_value": int((~there).sum()),
    }


def _flags(evidence: pa.Table, groups: Sequence[str], *, level: float) -> dict[str, Any]:
    """Compare flags with planted samples: precision, recall, and the flagged share of further groups."""
    flagged = _column(evidence, "flagged") == 1
    inside = {name: torch.tensor([group == name for group in groups]) for name in dict.fromkeys(groups)}
    none = torch.zeros(len(groups), dtype=torch.bool)
    planted, unique = inside.pop(PLANTED, none), inside.pop(UNIQUE, none)
    hit, false_alarm = int((flagged & planted).sum()), int((flagged & unique).sum())
    all_planted, all_unique = int(planted.sum()), int(unique.sum())

    def share(k: int, n: int) -> dict[str, Any]:
        return {"k": k, "n": n, "share": k / n if n else None, "interval": list(proportion_interval(k, n, level=level))}

    result = {
        "planted_flagged": hit,
        "planted_missed": all_planted - hit,
        "unique_flagged": false_alarm,
        "unique_not_flagged": all_unique - false_alarm,
        "precision": share(hit, hit + false_alarm),
        "recall": share(hit, all_planted),
        "false_positive_rate": share(false_alarm, all_unique),
        "groups": {
            name: share(int((flagged & inside[name]).sum()), int(inside[name].sum())) for name in sorted(inside)
        },
        "first_flagged_step": None,
    }
    if "first_flagged_step" in evidence.column_names:
        steps = _column(evidence, "first_flagged_step")[planted & flagged]
        steps = steps[torch.isfinite(steps)]
        if len(steps):
            result["first_flagged_step"] = {
                "min": int(steps.min()),
                "median": int(steps.median()),
                "max": int(steps.max()),
            }
    return result


def _skipped(evidence: pa.Table, planted: Tensor) -> dict[str, float | None]:
    """Return the mean share of visits with weight 0 for planted and for unique samples."""
    skipped = _column(evidence, "skipped")
    means = {name: skipped[chosen].nanmean() for name, chosen in (("planted", planted), ("unique", ~planted))}
    return {name: float(mean) if torch.isfinite(mean) else None for name, mean in means.items()}
