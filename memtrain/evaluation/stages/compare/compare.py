"""Paired comparison of two evaluated runs: the gain of the second over the first, and its cost.

Pairs are prompts with the same key, and generations of these prompts with the same seed. A picture is reproduced if any
generation of any of its prompts is reproduced, by the threshold of its own run. Both runs set their thresholds at a
stated false-positive rate. Differences of shares have a paired percentile bootstrap over pictures (Efron, "Bootstrap
methods", 1979). Pictures that come back in only one of the runs have an exact test (McNemar, "Note on the sampling
error of the difference between correlated proportions", 1947): the probability that a fair coin is as one-sided.

Cannot: compare runs with different sampling, nor tell whether a difference would come back with another seed of
training. This needs several trainings of each run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from memtrain.errors import RecordError
from memtrain.evaluation.stages.compare.evaluated import Evaluated, check_comparable
from memtrain.evaluation.stages.compare.summary import summary
from memtrain.evaluation.stages.provenance import provenance
from memtrain.evaluation.stages.results_file import write_results
from memtrain.files.inside import below
from memtrain.files.pictures import PictureError, read_image
from memtrain.files.whole import written_whole
from memtrain.functional.ranking import mean_with_interval, share
from memtrain.records import HELDOUT, NEVER_TRAINED

SCHEMA_VERSION = 1
"""Version of `comparison.json`."""
NAME = "comparison.json"
TRAINED = "trained on"
"""Name for all groups of trained pictures together."""


def compare_runs(
    before: Evaluated, after: Evaluated, *, output: Path, pictures: int, bootstrap: Mapping[str, Any]
) -> dict[str, Any]:
    """Compare two runs, and write `comparison.json` and the images of the report.

    Args:
        before: the first run.
        after: the second run.
        output: the output folder.
        pictures: the largest number of pictures shown side by side.
        bootstrap: the `seed`, `resamples` and `level` of intervals.

    Returns:
        The content of `comparison.json`.

    Raises:
        RecordError: if the runs cannot be compared.
    """
    check_comparable(before, after)
    shared = sorted(before.rows.keys() & after.rows.keys())
    group = {key: before.rows[key, seed]["group"] for key, seed in shared}
    names = [TRAINED, *dict.fromkeys(group.values())]
    groups = {}
    for name in names:
        inside = [
            place
            for place in shared
            if (group[place[0]] not in NEVER_TRAINED if name == TRAINED else group[place[0]] == name)
        ]
        if inside:
            groups[name] = _group(before, after, inside, bootstrap)
    results = {
        "schema_version": SCHEMA_VERSION,
        **provenance(),
        "runs": [_said(one) for one in (before, after)],
        "sampling": {
            **{name: before.results["sampling"].get(name) for name in ("steps", "guidance_scale", "scheduler")},
            "seeds": sorted({seed for _, seed in shared}),
        },
        "statistics": dict(bootstrap),
        "paired": {
            "prompts": len(group),
            "images": len(shared),
            "only_before": len(before.keys - after.keys),
            "only_after": len(after.keys - before.keys),
        },
        "groups": groups,
        "quality": _quality(before.results, after.results),
        "shown": _shown(before, after, shared, output, pictures),
    }
    results["summary"] = summary(results)
    return write_results(results, output / NAME)


def mcnemar(stopped: int, started: int) -> float:
    """Compute the two-sided exact p-value: the probability that a fair coin is at least as one-sided.

    Args:
        stopped: the number of pictures that only the first run reproduces.
        started: the number of pictures that only the second run reproduces.
    """
    n = stopped + started
    tail = sum(math.comb(n, number) for number in range(min(stopped, started) + 1))
    return min(1.0, 2 * tail / 2**n)


def _said(one: Evaluated) -> dict[str, Any]:
    verdict, replication = one.results["verdict"], one.results["replication"]
    return {
        "name": one.name,
        "folder": str(one.folder),
        "created": one.results["created"],
        "verdict": verdict["level"],
        "threshold": replication["threshold"],
        "false_positive_rate": replication["false_positive_rate"],
    }


def _group(
    before: Evaluated, after: Evaluated, places: Sequence[tuple[str, int]], bootstrap: Mapping[str, Any]
) -> dict[str, Any]:
    """Compute the figures of a group, by picture."""
    pictures: dict[str, list[tuple[str, int]]] = {}
    for place in places:
        pictures.setdefault(before.rows[place].get("picture_family", place[0]), []).append(place)

    def by_picture(one: Evaluated, value: Callable[[Mapping[str, Any]], float], least: bool) -> torch.Tensor:
        best = min if least else max
        return torch.tensor([best(value(one.rows[place]) for place in inside) for inside in pictures.values()])

    back = [by_picture(one, lambda row: float(row["reproduced"]), False) for one in (before, after)]
    ratios = [by_picture(one, lambda row: row["ratio"], True) for one in (before, after)]
    stopped, started = int((back[0] > back[1]).sum()), int((back[1] > back[0]).sum())
    found: dict[str, Any] = {
        "n": len(pictures),
        "prompts": len({key for key, _ in places}),
        "before": share(back[0].bool().tolist()),
        "after": share(back[1].bool().tolist()),
        "stopped": stopped,
        "started": started,
        "p_value": mcnemar(stopped, started),
        "change": mean_with_interval(back[1] - back[0], **bootstrap),
        "best_ratio": _paired(ratios, bootstrap),
        "similarity": {},
    }
    columns = set(before.rows[places[0]]) & set(after.rows[places[0]])
    for column in sorted(name for name in columns if name.startswith("copy.") and name.endswith(".own")):
        there = all(one.rows[place][column] is not None for one in (before, after) for place in places)
        if there:
            most = [by_picture(one, lambda row, name=column: row[name], False) for one in (before, after)]  # type: ignore[misc]
            found["similarity"][column.split(".")[1]] = _paired(most, bootstrap)
    return found


def _paired(values: Sequence[torch.Tensor], bootstrap: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mean of each run, and the mean difference with its interval."""
    before, after = values
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "change": mean_with_interval(after.double() - before.double(), **bootstrap),
    }


def _quality(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Pair every figure of quality that both runs have, with the runs' own intervals if there are any."""
    found = {}
    first, second = (_with_interval(results.get("quality") or {}) for results in (before, after))
    for name in first:
        one, two = _figure(first.get(name)), _figure(second.get(name))
        if one is not None and two is not None:
            change = two[0] - one[0]
            found[name] = {
                "before": one[0],
                "after": two[0],
                "change": change,
                "relative": change / abs(one[0]) if one[0] else None,
                "interval_before": one[1],
                "interval_after": two[1],
            }
    return found


def _with_interval(quality: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures, with the interval of the held-out loss if the results have it."""
    figures = dict(quality)
    mean = figures.pop("heldout_loss_mean", None)
    return figures if mean is None else figures | {"heldout_loss": mean}


def _figure(value: Any) -> tuple[float, list[float] | None] | None:
    """Return a number and its interval; None if it was not measured."""
    interval = value.get("interval") if isinstance(value, Mapping) else None
    number = value.get("value", value.get("mean")) if isinstance(value, Mapping) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    return float(number), interval


def _image(path: Path) -> Image.Image:
    try:
        return read_image(path)
    except (OSError, PictureError) as error:
        raise RecordError(
            f"{path} cannot be shown: {error}",
            expected="the images that `measure` wrote",
            remedy="run `memtrain measure` again, or leave out pictures with --pictures 0",
        ) from error


def _shown(
    before: Evaluated, after: Evaluated, places: Sequence[tuple[str, int]], output: Path, most: int
) -> list[dict[str, Any]]:
    """Copy the shown pictures to the output: first pictures that changed sides, then those with the largest change.

    The seed nearest to a copy in either run represents a picture.
    """

    def nearest(place: tuple[str, int]) -> float:
        return float(min(before.rows[place]["ratio"], after.rows[place]["ratio"]))

    best: dict[str, tuple[str, int]] = {}
    for place in sorted(places, key=nearest):
        row = before.rows[place]
        if row["group"] != HELDOUT:
            best.setdefault(row.get("picture_family", place[0]), place)

    def order(place: tuple[str, int]) -> tuple[bool, float]:
        one, two = before.rows[place], after.rows[place]
        return one["reproduced"] == two["reproduced"], -abs(two["ratio"] - one["ratio"])

    shown = []
    for number, place in enumerate(sorted(best.values(), key=order)[:most]):
        one, two = before.rows[place], after.rows[place]
        sources = {
            "own": below(before.folder, one["own_image"], f"{before.folder / 'samples.parquet'}: own_image"),
            "before": below(before.folder, one["image"], f"{before.folder / 'samples.parquet'}: image"),
            "after": below(after.folder, two["image"], f"{after.folder / 'samples.parquet'}: image"),
        }
        images = {}
        for name, source in sources.items():
            path = output / "comparison" / f"{number:04d}-{name}.png"
            with written_whole(path, durable=False) as unfinished:
                _image(source).save(unfinished, "PNG")
            images[name] = str(path.relative_to(output))
        shown.append(
            {
                "key": place[0],
                "seed": place[1],
                "caption": one["caption"],
                "group": one["group"],
                **images,
                "ratio_before": one["ratio"],
                "ratio_after": two["ratio"],
                "reproduced_before": one["reproduced"],
                "reproduced_after": two["reproduced"],
            }
        )
    return shown
