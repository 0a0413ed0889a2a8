"""The basis of a run's flags and their promise, in figures for a file and in sentences for the screen.

A run without flags is not a clean run. It may have been too short to judge most of its samples, or too small for a
threshold. Its canaries, which are samples known to be repeated, may also have gone unnoticed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.direction import MINIMUM_CANARIES
from memtrain.evidence.levels import CAPTION
from memtrain.evidence.promise import FIELDS, promise, promise_of


def calibration_figures(calibration: Calibration, keys: Sequence[str]) -> dict[str, Any]:
    """Return the content of `records/calibration.json`: the basis of the run's flags and their promise.

    Args:
        calibration: the calibration at the end of the run.
        keys: the keys of all training samples.

    Returns:
        `threshold` (None without one), `false_positive_rate` (the requested rate), its promise
        (:data:`memtrain.evidence.promise.FIELDS`; all None without a threshold), `minimum_visits`, `heldout` (number of
        calibrating pictures; None if training samples calibrated) and `samples`. `judged` is the number of samples
        whose picture had enough visits. `flagged`, `pictures`, `pictures_flagged` and `captions_flagged` count samples,
        pictures and captions. `canaries`, `canaries_flagged` and `power` (their share) are about canaries. `separation`
        is the distance of canaries along the learnt direction, in standard deviations; None without a direction.
    """
    found, canaries = calibration.power()
    held, known = (
        None if calibration.heldout is None else len(calibration.highest),
        math.isfinite(calibration.threshold),
    )
    promised = promise(held, calibration.false_positive_rate) if known else None
    return {
        "threshold": calibration.threshold if known else None,
        "false_positive_rate": calibration.false_positive_rate,
        **(dict.fromkeys(FIELDS) if promised is None else promised.figures()),
        "minimum_visits": calibration.minimum_visits,
        "heldout": held,
        "samples": len(keys),
        "judged": int(calibration.judged(keys).sum()),
        "flagged": int(calibration.ever_flagged(keys).sum()),
        "pictures": len(set(calibration.levels.pictures_of(keys))),
        "pictures_flagged": calibration.levels.flagged_pictures_of(keys),
        "captions_flagged": len(calibration.levels.crossed[CAPTION]),
        "canaries": canaries,
        "canaries_flagged": found,
        "power": found / canaries if canaries else None,
        "separation": None if calibration.direction is None else calibration.taught.separation,
    }


def verdict(figures: Mapping[str, Any], *, untaught: str | None = None) -> str:
    """Return the verdict on the flags of a run and its limits, in sentences.

    Args:
        figures: the figures from :func:`calibration_figures`.
        untaught: reason why no direction was learnt from canaries, if one was needed.
    """
    samples, late = figures["samples"], figures["samples"] - figures["judged"]
    held = figures["heldout"]
    if figures["threshold"] is None:
        few = "ordinary training samples" if held is None else "held-out samples"
        lines = [f"No sample could be flagged, because too few {few} had the visits that a threshold needs."]
    else:
        lines = [
            f"{figures['flagged']:,} of {samples:,} training samples {_were(figures['flagged'])} flagged. A sample is "
            "flagged if its score is above the threshold of that step. The threshold at the end is "
            f"{figures['threshold']:.2f}."
        ]
        if figures["pictures"] != samples:
            pictures = figures["pictures_flagged"]
            lines = [
                f"{pictures:,} of {figures['pictures']:,} training pictures {_were(pictures)} flagged "
                f"({figures['flagged']:,} of {samples:,} files). A file is "
                "flagged if its score, its picture's or its caption's is above the threshold of that step. The "
                f"threshold at the end is {figures['threshold']:.2f} for a picture of one file."
            ]
        promised = promise_of(figures)
        lines += [] if promised is None else promised.sentences()
    if late:
        lines.append(
            f"{late:,} of {samples:,} training samples had fewer than {figures['minimum_visits']} counted visits "
            f"{'' if figures['pictures'] == samples else 'of their picture '}and could not be flagged. To judge them, "
            "train for more epochs, or lower minimum_visits."
        )
    if figures["canaries"]:
        canaries, found = figures["canaries"], figures["canaries_flagged"]
        known = "This sample is" if canaries == 1 else "These samples are"
        lines.append(
            f"{found} of {canaries} {'canary' if canaries == 1 else 'canaries'} {_were(found)} flagged. "
            f"{known} known to be repeated."
        )
    return "\n".join([*lines, *([untaught] if untaught else [])])


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def why_untaught(calibration: Calibration) -> str | None:
    """Return why no direction was learnt from canaries, and the remedy; None if one was learnt or not needed."""
    found = calibration.untaught()
    if found is None:
        return None
    needed = calibration.taught.ordinary_needed()
    return (
        f"No direction was learnt from canaries. {found[0]} canaries and {found[1]} ordinary samples had enough visits "
        f"(needed: {MINIMUM_CANARIES} and {needed}), or the canaries did not stand out. Flags rest on the mean square "
        "of all values instead. Train for more epochs or on more samples, repeat canaries more often, or set flag_by "
        "to one signal."
    )


STREAMED = "StreamedImages"
"""Mark in the configuration of a run whose images an evaluation cannot read."""


def next_step(table: pa.Table, run: Path) -> str:
    """Return the command for the next step.

    Args:
        table: the table from :func:`memtrain.evidence.evidence_table.evidence_table`.
        run: the run folder; `memtrain measure --run` reads the configuration that `memtrain train` writes there.
    """
    config = run / "config.yaml"
    if config.is_file() and STREAMED in config.read_text(encoding="utf-8", errors="replace"):
        return (
            f"Next: memtrain measure --model {run / 'pipeline'} --data IMAGES --heldout OTHERS "
            "(a stream does not give its images again; docs/streaming.md describes how to keep some)"
        )
    if config.is_file():
        return f"Next: memtrain measure --run {run}"
    if pc.any(pc.and_(table["flagged"], pc.greater(pc.utf8_length(table["caption"]).fill_null(0), 0))).as_py():
        return (
            "Next: save the trained model as a diffusers pipeline folder and score the flagged captions: "
            f"memtrain detect --model FOLDER --prompts {run / 'flagged.csv'}"
        )
    return f"Next: open {run / 'records'} (evidence.parquet has one row per sample)"
