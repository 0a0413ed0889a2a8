"""Curve of reproduced pictures over the checkpoints of a training.

Each checkpoint is evaluated like the finished model, with the same prompts, seeds and measures of copying. Its
threshold is its own, calibrated on its own generations for the held-out prompts. An early model's images are further
from all pictures than a late model's images, and one threshold for all checkpoints would count this learning as
copying. The held-out loss stands beside the share, and shows the gain of a longer training. One measure of copying
counts the pictures of all checkpoints: the measure of the finished model's verdict.

The output folder gets `curve/<checkpoint>-<key>/` with the results, samples and images of each checkpoint. The key
covers the file and all settings. Existing results are not measured again, so a killed command goes on. `curve.json`
holds the points, and `curve.png` shows them.

Cost: one evaluation for each checkpoint. Cannot: tell two checkpoints apart whose intervals overlap (the pictures are
the same, so the interval of the difference would be narrower).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.sampling.stored_samples import UnfinishedParts
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.checkpoints import Checkpoint
from memtrain.evaluation.stages.measure.copying import Chosen
from memtrain.evaluation.stages.measure.decision import RATIO
from memtrain.evaluation.stages.measure.evaluate_run import evaluate_run
from memtrain.evaluation.stages.measure.results import Statistics
from memtrain.evaluation.stages.provenance import dtype_name, provenance
from memtrain.evaluation.stages.results_file import write_results
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.files.shown import shown
from memtrain.files.text import read_json_object
from memtrain.functional.ranking import proportion_interval
from memtrain.records import NEVER_TRAINED, write_json, written_whole

SCHEMA_VERSION = 1
"""Version of the layout of `curve.json`."""

Evaluate = Callable[[StageInput, RunSamples], Mapping[str, Any]]
"""Function that evaluates one model, and returns the content of its `results.json`."""


def add_curve(
    given: StageInput,
    samples: RunSamples,
    results: Mapping[str, Any],
    *,
    statistics: Statistics,
    copying: Chosen | None,
) -> dict[str, Any]:
    """Measure the checkpoints of a stage, and write `results.json` again with their curve.

    Args:
        given: the input of the stage, with checkpoints.
        samples: the samples of the finished model's evaluation.
        results: the results of the finished model.
        statistics: the settings of rates and intervals.
        copying: the measures of copying of the finished model's evaluation.

    Returns:
        The content of `results.json`.
    """
    measure = results["verdict"].get("counted_by") or RATIO
    asked = _asked(statistics, copying)
    evaluate = partial(_evaluate, statistics=statistics, copying=copying)
    points = curve(given, _about(samples), given.checkpoints, evaluate=evaluate, asked=asked, measure=measure)
    print_curve(points)
    return write_results({**results, "curve": points}, given.output / "results.json")


def share_checkpoints(
    given: StageInput,
    samples: RunSamples,
    checkpoints: Sequence[Checkpoint],
    *,
    statistics: Statistics,
    copying: Chosen | None,
) -> None:
    """Evaluate some of a stage's checkpoints, for the process that writes the curve; arguments as :func:`add_curve`.

    Each checkpoint is a unit of work. A checkpoint with results is not evaluated again.
    """
    asked, about = _asked(statistics, copying), _about(samples)
    for one in checkpoints:
        folder = checkpoint_folder(one, given, about, asked)
        if _kept(folder / "results.json", one, measure=RATIO, level=0.95) is None:
            print(f"Checkpoint {shown(one.path)}")
            part = replace(given, pipeline=one.load(), output=folder, model=str(one.path))
            _evaluate(part, about, statistics=statistics, copying=copying)


def require_checkpoints(
    given: StageInput, samples: RunSamples, *, statistics: Statistics, copying: Chosen | None
) -> None:
    """Refuse to go on while other processes evaluate checkpoints.

    Raises:
        UnfinishedParts: if a checkpoint has no results yet.
    """
    asked, about = _asked(statistics, copying), _about(samples)
    folders = [checkpoint_folder(one, given, about, asked) for one in given.checkpoints]
    if missing := sum(not (folder / "results.json").is_file() for folder in folders):
        raise UnfinishedParts(f"Results of {missing} of {len(folders)} checkpoints are", given.output / "curve")


def checkpoint_folder(one: Checkpoint, given: StageInput, samples: RunSamples, asked: Mapping[str, Any]) -> Path:
    """Return the folder of a checkpoint's results."""
    return given.output / "curve" / f"{one.path.stem}-{_key(one, given, samples, asked)}"


def _asked(statistics: Statistics, copying: Chosen | None) -> dict[str, Any]:
    """Return the settings that results depend on in addition to prompts and sampling."""
    measures = [] if copying is None else [one.name for one in copying.measures]
    return {"statistics": asdict(statistics), "measures": measures}


def _about(samples: RunSamples) -> RunSamples:
    """Leave out evidence, which belongs to the whole run, and secrets, which are for the finished model."""
    return replace(samples, evidence=None, canaries=None, borders=None)


def _evaluate(
    given: StageInput, samples: RunSamples, *, statistics: Statistics, copying: Chosen | None
) -> Mapping[str, Any]:
    return evaluate_run(given, samples, statistics=statistics, kid=False, copying=copying)


def print_curve(points: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print the curve as a table."""
    table = Table(title="Reproduced by checkpoint", title_justify="left")
    for number, head in enumerate(("step", "reproduced", "of", "95 % interval", "held-out loss")):
        table.add_column(head, justify="right" if number else "left")
    for one in points:
        low, high = one["interval"]
        loss = "not measured" if one["heldout_loss"] is None else f"{one['heldout_loss']:.4f}"
        table.add_row(str(one["step"]), str(one["reproduced"]), str(one["n"]), f"{low:.0%} to {high:.0%}", loss)
    (console or Console()).print(table, markup=False)


def curve(
    given: StageInput,
    samples: RunSamples,
    checkpoints: Sequence[Checkpoint],
    *,
    evaluate: Evaluate,
    asked: Mapping[str, Any],
    measure: str = RATIO,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """Evaluate checkpoints and write the curve.

    Args:
        given: the input of the stage; its pipeline is not used.
        samples: the prompts with their images, the same for all checkpoints.
        checkpoints: the checkpoints in the order of the curve.
        evaluate: the function that evaluates one checkpoint.
        asked: further settings that `evaluate` depends on, in a form that JSON can hold.
        measure: the measure of copying that counts the pictures of all checkpoints.
        level: the coverage of the intervals.

    Returns:
        One point for each checkpoint: `checkpoint`, `step`, `reproduced`, `n`, `share`, `interval`, `heldout_loss`, and
        for its threshold `measure`, `threshold`, `false_positive_rate`, `n_heldout`.

    Raises:
        ConfigurationError: if there are no checkpoints.
    """
    if not checkpoints:
        raise ConfigurationError(
            "There are no checkpoints for a curve",
            expected="at least one checkpoint",
            remedy="check the pattern of --checkpoints",
        )
    points = []
    for number, one in enumerate(checkpoints, 1):
        folder = checkpoint_folder(one, given, samples, asked)
        kept = folder / "results.json"
        at = f"step {one.step}" if one.step is not None else "unknown step"
        results = _kept(kept, one, measure=measure, level=level)
        note = "" if results is None else " (kept)"
        print(f"Checkpoint {number} of {len(checkpoints)}, {at}: {shown(one.path)}{note}")
        if results is None:
            results = evaluate(replace(given, pipeline=one.load(), output=folder, model=str(one.path)), samples)
        points.append(_point(one, results, measure=measure, level=level))
        # Written with every point, so that you can look at the points while the rest is sampled.
        _write(given, points)
    return points


def _kept(path: Path, one: Checkpoint, *, measure: str, level: float) -> Mapping[str, Any] | None:
    """Read the results of an earlier evaluation of a checkpoint; None if there are none, or they are damaged."""
    if not path.is_file():
        return None
    try:
        found = read_json_object(path, what="results", remedy="")
        _point(one, found, measure=measure, level=level)
        return found
    except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
        print(f"{shown(path)} is damaged, so it is evaluated again: {shown(getattr(error, 'problem', repr(error)))}")
        return None


def _key(one: Checkpoint, given: StageInput, samples: RunSamples, asked: Mapping[str, Any]) -> str:
    """Hash everything that a point depends on. A file counts by its size and time, because reading it takes long."""
    about = one.path.stat()
    sampling = given.sampling
    content = {
        "file": [str(one.path.absolute()), about.st_size, about.st_mtime_ns],
        "prompts": [[prompt.key, prompt.caption, prompt.group] for prompt in samples.prompts],
        "training": list(samples.every_key),
        "size": list(samples.own_images.shape[-2:]),
        "sampling": {**sampling.said(), "batch_size": sampling.batch_size},
        "asked": asked,
    }
    if (dtype := dtype_name(given.pipeline)) != "float32":
        content["dtype"] = dtype
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _point(one: Checkpoint, results: Mapping[str, Any], *, measure: str, level: float) -> dict[str, Any]:
    judged = (results.get("copying") or {"measures": {}})["measures"].get(measure, results["replication"])
    counted = [group for name, group in judged["groups"].items() if name not in NEVER_TRAINED]
    reproduced, n = (sum(int(group[key]) for group in counted) for key in ("reproduced", "n"))
    return {
        "checkpoint": str(one.path),
        "step": one.step,
        "reproduced": reproduced,
        "n": n,
        "share": reproduced / n if n else None,
        "interval": list(proportion_interval(reproduced, n, level=level)),
        "heldout_loss": results["quality"]["heldout_loss"],
        "measure": measure,
        "threshold": judged["threshold"],
        "false_positive_rate": judged["false_positive_rate"],
        "n_heldout": judged["n_heldout"],
    }


def _write(given: StageInput, points: Sequence[Mapping[str, Any]]) -> None:
    content = {
        "schema_version": SCHEMA_VERSION,
        **provenance(given.pipeline),
        "sampling": given.sampling.said(),
        "calibration": "each checkpoint's own, on its generations for the held-out prompts",
        "points": list(points),
    }
    write_json(content, given.output / "curve.json")
    with written_whole(given.output / "curve.png") as unfinished:
        draw(points, unfinished)


def draw(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Chart the reproduced share with intervals, and the held-out loss, against the step, in a PNG file."""
    drawn = [one for one in points if one["step"] is not None and one["share"] is not None]
    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    steps, shares = [one["step"] for one in drawn], [100 * one["share"] for one in drawn]
    ends = [[100 * one["interval"][end] for one in drawn] for end in (0, 1)]
    below = [max(0.0, share - low) for share, low in zip(shares, ends[0], strict=True)]
    above = [max(0.0, high - share) for share, high in zip(shares, ends[1], strict=True)]
    axes.errorbar(steps, shares, yerr=[below, above], marker="o", capsize=3, color="tab:red")
    axes.set(xlabel="step", ylim=(0, None))
    axes.set_ylabel("training pictures reproduced, %", color="tab:red")
    losses = [(one["step"], one["heldout_loss"]) for one in drawn if one["heldout_loss"] is not None]
    if losses:
        beside = axes.twinx()
        beside.plot(*zip(*losses, strict=True), marker="s", linestyle="--", color="tab:blue")
        beside.set_ylabel("held-out loss", color="tab:blue")
    with written_whole(path, durable=False) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150)
