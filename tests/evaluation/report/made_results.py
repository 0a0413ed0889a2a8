"""Results with every key that a report knows, written by hand: what the page does with them, not what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ATTACK = "<script>alert('x')</script>\" onerror=\"alert(1) & $\\frac$ | `a` @someone"
KEY = "patient-Müller-17"
OTHER = "Weiß, Anna"
SEEDS = (0, 1, 2)


def share(k: int, n: int, name: str = "reproduced") -> dict[str, Any]:
    """A share of a results file."""
    return {"n": n, name: k, "share": k / n, "interval": [max(0.0, k / n - 0.1), min(1.0, k / n + 0.1)]}


def group(k: int, n: int) -> dict[str, Any]:
    """A group of `replication`."""
    ratio = {"min": 0.1, "median": 0.5, "max": 1.0}
    return {**share(k, n), "prompts": n, "share_of_images": 0.25, "best_ratio": ratio, "looks": 1.0}


def full_results() -> dict[str, Any]:
    """The content of a `results.json` of version 3."""
    measure = {
        "threshold": 0.75,
        "false_positive_rate": 0.01,
        "rate_bound": 0.04,
        "n_heldout": 60,
        "sees": True,
        "power": {"none": share(60, 60, "found"), "crop": share(45, 60, "found")},
        "train_to_train": {"median": 0.2, "percentile_99": 0.5, "share_above": 0.001},
        "groups": {"planted": share(2, 4), "heldout": share(0, 4)},
        "nearest": share(6, 24, "copies"),
        "between": share(1, 8, "alike"),
    }
    ranking = {
        "positives": 2,
        "negatives": 6,
        "auroc": 0.9,
        "interval": [0.7, 1.0],
        "true_positive_rate": 0.5,
        "false_positive_rate": 0.01,
    }
    return {
        "schema_version": 3,
        "created": "2026-01-01T00:00:00Z",
        "versions": {"memtrain": "0", "torch": "2"},
        "model": "runs/x",
        "config": {"model": f"/data/{KEY}"},
        "sampling": {"seeds": list(SEEDS), "steps": 5, "guidance_scale": 4.0, "scheduler": "DDIM", "images": 24},
        "statistics": {"seed": 0, "resamples": 10, "level": 0.95},
        "verdict": {
            "cleared": False,
            "reproduced": 2,
            "asked": 4,
            "share_below": 0.8,
            "level": "reproduces",
            "text": f"This model reproduces 2 of 4 pictures, such as {KEY}. Chance would bring back 0.04.",
            "reasons": [],
            "rests_on": ["Sixty held-out prompts " + ATTACK, f"The picture {KEY} was asked for."],
            "cannot_say": ["Whether other seeds would."],
        },
        "families": {"known": True, "pictures": 0, "files": 0, "captions": 0, "asked": []},
        "replication": {
            "threshold": 0.6,
            "false_positive_rate": 0.05,
            "n_heldout": 60,
            "neighbours": 50,
            "n_training_images": 100,
            "groups": {"planted": group(2, 4), "heldout": group(0, 4)},
        },
        "detectors": {"sharpness": {"higher_means_memorized": True, "cost": "none", "comparisons": {"a": ranking}}},
        "training": {"planted": 2, "unique": 0, "signals": [], "flags": None, "skipped": None},
        "quality": {
            "heldout_loss": {"value": 0.1234, "interval": [0.12, 0.13], "backend": "own"},
            "kid": {"value": 0.02, "interval": [0.01, 0.03], "features": "a net"},
            "fid": {"value": None, "reason": "no weights"},
        },
        "copying": {
            "recommended": "sscd",
            "measures": {"ratio": {**measure, "sees": False}, "sscd": measure},
            "left_out": {"dino": "no folder was named"},
        },
        "counts": {
            "pictures": share(2, 4),
            "generations": share(5, 12, "copies"),
            "extraction": {"by_prompt": share(2, 4, "extracted"), "unconditional": share(0, 9, "extracted")},
            "exposure": {
                "canaries": {
                    "candidates": 16,
                    "highest": 4.0,
                    "null_mean": 1.4,
                    "by_similarity": {
                        "by_repetition": [{"repeats": 8, "n": 4, "mean": 3.5, "interval": [2.5, 4.0], "saturated": 2}]
                    },
                },
            },
            "by_group": {KEY: share(1, 1), OTHER: share(1, 3)},
        },
        "curve": [
            {"checkpoint": f"step-{step}", "step": step, **share(k, 4), "heldout_loss": 0.2 - step / 1000}
            for step, k in ((10, 0), (20, 1), (30, 2))
        ],
        "controls": {"sscd": {"planted": share(15, 16, "found"), "unplanted": share(0, 16, "found"), "hold": True}},
    }


def write_full_results(folder: Path) -> None:
    """`results.json`, `samples.parquet`, `evidence_curves.parquet` and an image in `folder`."""
    (folder / "results.json").write_text(json.dumps(full_results()), encoding="utf-8")
    drawn = np.random.default_rng(0)
    Image.fromarray(drawn.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / "image.png")
    rows = []
    for number in range(8):
        planted = number < 4
        key = KEY if number == 0 else f"key-{number}"
        for seed in SEEDS:
            rows.append(
                {
                    "key": key,
                    "group": "planted" if planted else "heldout",
                    "picture_family": key,
                    "caption_family": key,
                    "caption": f"a portrait of number {number} {ATTACK}",
                    "seed": seed,
                    "ratio": (0.3 if number < 2 else 0.8) + 0.01 * seed + 0.001 * number,
                    "nearest_key": KEY,
                    "nearest_picture_family": KEY,
                    "nearest_caption_family": KEY,
                    "reproduced": number < 2,
                    "image": "image.png",
                    "own_image": "image.png",
                    "training.flagged": planted,
                    "training.first_flagged_step": 7 if planted else None,
                    "copy.sscd.own": (0.9 if number < 2 else 0.2) + 0.01 * number,
                    "copy.ratio.own": -0.3 if number < 2 else -0.8,
                    "detector.sharpness": 1.0 - 0.1 * number,
                }
            )
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    curve = pa.table({"key": [KEY] * 3, "step": [0, 5, 9], "score": [0.0, 2.0, 5.0]})
    pq.write_table(curve.replace_schema_metadata({"threshold": "3.5"}), folder / "evidence_curves.parquet")
