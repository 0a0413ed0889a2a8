"""The figures of the ablation: what is kept of a run, the file they are kept in, and how seeds are pooled.

The file alone is enough to draw and to print, and to go on with other seeds or rows on another machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from mitigation_rows import DOSE_ROWS, DOSE_SETTING, ROWS, SETTING, Row, identity

from memtrain.functional.ranking import proportion_interval

GROUPS = {
    "planted": "planted",
    "unique": "unique",
    "varied_captions": "varied captions",
    "varied_images": "varied images",
}
"""Groups of prompts, and how they are called."""


class Store:
    """Figures by part (`rows`, `dose`), row and seed, in one JSON file that is never half written.

    Args:
        path: the path of the file; it is read if it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()
        self.content: dict[str, Any] = {"rows": {}, "dose": {}, "timing": {}}
        if path.is_file():
            self.content |= json.loads(path.read_text(encoding="utf-8"))

    def finished(self, part: str, name: str, seed: int, *, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The figures of a run, if it is finished and was this run."""
        found = self.content[part].get(name, {}).get(str(seed))
        return found if found is not None and found["identity"] == identity else None

    def add(self, part: str, name: str, seed: int, *, figures: dict[str, Any]) -> None:
        """Keep the figures of a run, and write the file."""
        with self._lock:
            runs = self.content[part].setdefault(name, {})
            runs[str(seed)] = figures
            self.content[part][name] = dict(sorted(runs.items(), key=lambda item: int(item[0])))
            self._write()

    def set_timing(self, name: str, figures: dict[str, Any]) -> None:
        """Keep how long something takes, and write the file."""
        with self._lock:
            self.content["timing"][name] = figures
            self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path)


def run_figures(results: dict[str, Any], *, folder: Path) -> dict[str, Any]:
    """Return the kept figures of a run.

    Args:
        results: content of results.json.
        folder: the folder of the benchmark; it is written as `{folder}`, so that no path of a machine is kept.
    """
    groups, training = results["replication"]["groups"], results["training"] or {}
    flags = training.get("flags") or {}
    callbacks = results["config"]["trainer"]["callbacks"]
    kept = [
        {"class": entry["class_path"].rsplit(".", 1)[-1], **(entry.get("init_args") or {})}
        for entry in callbacks
        if entry["class_path"].startswith("memtrain.callbacks.")
    ]
    settings = {
        "callbacks": kept,
        "max_steps": results["config"]["trainer"]["max_steps"],
        "model": results["config"]["model"]["init_args"],
        "data": results["config"]["data"]["init_args"],
        "sampling": results["sampling"],
    }
    return {
        "groups": {name: {"n": group["n"], "reproduced": group["reproduced"]} for name, group in groups.items()},
        "doses": results["replication"].get("doses"),
        "heldout_loss": results["quality"]["heldout_loss"],
        "kid": results["quality"]["kid"]["value"],
        "kid_standard_error": results["quality"]["kid"]["standard_error"],
        "kid_without_copies": results["quality"]["kid"].get("without_copies"),
        "flags": {
            "planted": _counts(flags.get("recall")),
            "unique": _counts(flags.get("false_positive_rate")),
            "groups": {name: _counts(share) for name, share in (flags.get("groups") or {}).items()},
            "first_flagged_step": flags.get("first_flagged_step"),
        },
        "skipped": training.get("skipped"),
        "settings": json.loads(json.dumps(settings).replace(str(folder), "{folder}")),
    }


def _counts(share: dict[str, Any] | None) -> dict[str, int] | None:
    return None if share is None else {"k": share["k"], "n": share["n"]}


def pooled(counts: Sequence[tuple[int, int]]) -> dict[str, Any] | None:
    """Several counts `(k, n)` as one, with a 95 % interval (Wilson); None without any."""
    if not counts:
        return None
    k, n = (sum(column) for column in zip(*counts, strict=True))
    return {"k": k, "n": n, "share": k / n if n else 0.0, "interval": list(proportion_interval(k, n))}


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and ends; None without any."""
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values)} if values else None


def of_now(runs: Mapping[str, Any], row: Row, setting: Mapping[str, Any]) -> dict[str, Any]:
    """The runs by seed that were made with the row's configuration as it is."""
    own = identity(row, setting)
    return {seed: run for seed, run in runs.items() if run["identity"] == own}


def summarize(content: dict[str, Any]) -> list[dict[str, Any]]:
    """One summary per row that has a run, in the order of the table.

    Args:
        content: the content of the store.

    Returns:
        Each with `row`, `seeds`, `groups` and `flags` pooled over seeds, and `heldout_loss`, `loss_change` (relative to
        the baseline of the same seed), `kid`, `kid_without_copies_change` (difference to the same) and `skipped` (share
        of visits with weight 0) as mean and ends, and `time`.
    """
    runs = {row.name: of_now(content["rows"].get(row.name, {}), row, SETTING) for row in ROWS}
    baseline = runs.get("baseline", {})
    summary = []
    for row in ROWS:
        seeds = runs.get(row.name, {})
        if not seeds:
            continue
        values = list(seeds.values())
        paired = [(run, baseline[seed]) for seed, run in seeds.items() if seed in baseline]
        flags = {
            name: pooled([(f["k"], f["n"]) for run in values if (f := run["flags"][name]) is not None])
            for name in ("planted", "unique")
        }
        summary.append(
            {
                "row": row,
                "seeds": [int(seed) for seed in seeds],
                "groups": {
                    name: pooled([(g["reproduced"], g["n"]) for run in values if (g := run["groups"].get(name))])
                    for name in GROUPS
                },
                "flags": flags,
                "first_flagged": [
                    step["median"] for run in values if (step := run["flags"]["first_flagged_step"]) is not None
                ],
                "heldout_loss": spread([run["heldout_loss"] for run in values]),
                "loss_change": spread([run["heldout_loss"] / base["heldout_loss"] - 1 for run, base in paired]),
                "kid": spread([run["kid"] for run in values]),
                "kid_without_copies": spread(
                    [kept["value"] for run in values if (kept := run.get("kid_without_copies")) is not None]
                ),
                "kid_without_copies_change": spread(
                    [
                        kept["value"] - base["kid_without_copies"]["value"]
                        for run, base in paired
                        if (kept := run.get("kid_without_copies")) is not None and base.get("kid_without_copies")
                    ]
                ),
                "kid_standard_error": spread([run["kid_standard_error"] for run in values]),
                "skipped": {
                    name: spread([run["skipped"][name] for run in values if run.get("skipped")])
                    for name in ("planted", "unique")
                },
                "time": content["timing"].get(row.name),
            }
        )
    return summary


def dose_runs(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Per configuration that has any its runs by seed."""
    runs = {row.name: of_now(content["dose"].get(row.name, {}), row, DOSE_SETTING) for row in DOSE_ROWS}
    return {name: seeds for name, seeds in runs.items() if seeds}


def pooled_doses(content: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """Per configuration and number of repetitions, what is reproduced, pooled over seeds."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name, seeds in dose_runs(content).items():
        counts: dict[int, list[tuple[int, int]]] = {}
        for run in seeds.values():
            for dose in run["doses"] or ():
                counts.setdefault(dose["repeats"], []).append((dose["reproduced"], dose["n"]))
        pools = {repeats: pooled(pairs) for repeats, pairs in sorted(counts.items())}
        found[name] = {repeats: pool for repeats, pool in pools.items() if pool is not None}
    return found
