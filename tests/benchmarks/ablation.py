"""Figures of an ablation, as its file keeps them."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.scripts import Modules


def kept(planted: int, *, loss: float = 0.1, kid: float = 0.2, **changes: Any) -> dict[str, Any]:
    """Figures of a run as the store keeps them."""
    return {
        "identity": {},
        "groups": {"planted": {"n": 10, "reproduced": planted}, "unique": {"n": 60, "reproduced": 1}},
        "doses": None,
        "heldout_loss": loss,
        "kid": kid,
        "kid_standard_error": 0.01,
        "kid_without_copies": {"value": kid + 0.01, "n_generated": 400},
        "flags": {
            "planted": {"k": 9, "n": 10},
            "unique": {"k": 0, "n": 1000},
            "first_flagged_step": {"min": 8, "median": 16, "max": 40},
        },
        "skipped": {"planted": 0.0, "unique": 0.0},
        **changes,
    }


def content(scripts: Modules) -> dict[str, Any]:
    doses = [
        {"repeats": repeats, "n": n, "reproduced": k, "share": k / n}
        for repeats, n, k in ((1, 60, 1), (12, 6, 2), (200, 6, 6))
    ]
    found: dict[str, Any] = {
        "rows": {
            "baseline": {"0": kept(10, loss=0.1, kid=0.1), "1": kept(9, loss=0.2, kid=0.1)},
            "recommended": {"0": kept(0, loss=0.09, kid=0.15), "1": kept(1, loss=0.22, kid=0.17)},
            "loss_skipping": {"4": kept(8, skipped={"planted": 0.5, "unique": 0.0})},
        },
        "dose": {"baseline": {"0": kept(1, doses=doses), "1": kept(1, doses=doses)}},
        "timing": {
            "recommended": {"ratio_median": 1.05, "ratio_interval_95": [1.01, 1.11]},
            "plain": {"seconds": 0.2, "threads": 2},
            "profile": {"seconds": 61.0, "threads": 2},
        },
    }
    rows = scripts.mitigation_rows
    for part, setting in (("rows", rows.SETTING), ("dose", rows.DOSE_SETTING)):
        for row in rows.ROWS:
            for run in found[part].get(row.name, {}).values():
                run["identity"] = rows.identity(row, setting)
    return found
