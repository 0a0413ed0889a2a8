"""Results of one evaluated run, and a check that two runs can be paired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtrain.errors import RecordError
from memtrain.files.parquet_table import read_parquet
from memtrain.files.text import read_json_object

FEWEST = 0.5
"""Smallest share of the smaller run's prompts that the other run must have as well."""
SETTINGS = ("steps", "guidance_scale", "scheduler")
"""Settings of the sampling that have to be equal; seeds are paired."""

PARTS = ("created", "sampling.seeds", "verdict.level", "replication.threshold", "replication.false_positive_rate")
"""Required values of `results.json`."""
COLUMNS = ("key", "seed", "caption", "group", "ratio", "reproduced", "image", "own_image")
"""Required columns of `samples.parquet`."""


@dataclass(frozen=True)
class Evaluated:
    """Results of `measure` for a run.

    Attributes:
        name: the name of the run in the comparison.
        folder: the folder of the results.
        results: the content of `results.json`.
        rows: the rows of `samples.parquet`, by key and seed.
    """

    name: str
    folder: Path
    results: Mapping[str, Any]
    rows: Mapping[tuple[str, int], Mapping[str, Any]]

    @staticmethod
    def read(run: Path, *, name: str) -> Evaluated:
        """Read the results of a run.

        Args:
            run: the run's folder, or the folder of its results.
            name: the name of the run.

        Raises:
            RecordError: if the run was not evaluated, or its results have another shape.
            DataError: if the results cannot be read.
        """
        folder = run if (run / "results.json").is_file() else run / "evaluation"
        for file in ("results.json", "samples.parquet"):
            if not (folder / file).is_file():
                raise RecordError(
                    f"{folder / file} does not exist",
                    expected="an evaluated run, or the folder of its results",
                    remedy=f"memtrain measure --run {run}",
                )
        remedy = f"evaluate the run again: memtrain measure --run {run}"
        what = "the results of `memtrain measure`"
        results = read_json_object(folder / "results.json", what=what, remedy=remedy)
        for place in PARTS:
            value: Any = results
            for part in place.split("."):
                value = value.get(part, ...) if isinstance(value, dict) else ...
            if value is ...:
                raise RecordError(f"{folder / 'results.json'} has no {place}", expected=what, remedy=remedy)
        rows = read_parquet(folder / "samples.parquet", needed=COLUMNS, what=what, remedy=remedy).to_pylist()
        return Evaluated(name, folder, results, {(row["key"], row["seed"]): row for row in rows})

    @property
    def keys(self) -> set[str]:
        """Keys of the sampled prompts."""
        return {key for key, _ in self.rows}


def check_comparable(before: Evaluated, after: Evaluated) -> None:
    """Check that two runs can be paired.

    Args:
        before: the first run.
        after: the second run.

    Raises:
        RecordError: if a setting, prompt or caption differs.
    """
    again = "evaluate both runs with the same settings (memtrain measure --run ...), and compare again"
    for name in SETTINGS:
        first, second = (one.results["sampling"].get(name) for one in (before, after))
        if first != second:
            raise RecordError(
                f"{before.name} was sampled with {name} {first}, {after.name} with {second}",
                expected="the same settings of the sampling, so that only the models differ",
                remedy=again,
            )
    kinds = [one.results.get("dtype") for one in (before, after)]
    if None not in kinds and kinds[0] != kinds[1]:
        raise RecordError(
            f"{before.name} was computed in {kinds[0]}, {after.name} in {kinds[1]}",
            expected="the same type of numbers, so that only the models differ",
            remedy=f"{again}, both with --dtype {kinds[0]}",
        )
    shared = before.rows.keys() & after.rows.keys()
    seeds = [sorted({seed for _, seed in one.rows}) for one in (before, after)]
    if not set(seeds[0]) & set(seeds[1]):
        raise RecordError(
            f"{before.name} has seeds {seeds[0]}, {after.name} {seeds[1]}",
            expected="at least one seed in both",
            remedy=again,
        )
    keys = before.keys & after.keys
    smaller = min(len(before.keys), len(after.keys))
    if len(keys) < FEWEST * smaller:
        raise RecordError(
            f"{before.name} has {len(before.keys)} prompts and {after.name} has {len(after.keys)}, and only "
            f"{len(keys)} of them are the same",
            expected=f"at least {FEWEST:.0%} of the prompts in both: runs on the same data, with the same held-out "
            "images",
            remedy="compare runs that differ in their training only (same data, seed and --unique_prompts)",
        )
    for place in sorted(shared):
        first, second = before.rows[place]["caption"], after.rows[place]["caption"]
        if first != second:
            raise RecordError(
                f"The prompt {place[0]!r} is {first!r} in {before.name} and {second!r} in {after.name}",
                expected="the same caption for the same key",
                remedy="compare runs with the same captions",
            )
