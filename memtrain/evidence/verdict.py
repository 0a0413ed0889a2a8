"""How a run came to its flags and what they can promise: in figures for a file, in sentences for the screen.

A run without flags is not a clean run. It may have been too short to judge most of its samples, too small to have a
threshold, or its canaries, samples known to be repeated, may have gone unnoticed as well.
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
    """How the run came to its flags, and what they can promise; the content of `records/calibration.json`.

    Args:
        calibration: at the end of the run.
        keys: all training samples.

    Returns:
        `threshold` (None if there was never one), `false_positive_rate` (asked), what is promised of it
        (:data:`memtrain.evidence.promise.FIELDS`; all None without a threshold), `minimum_visits`, `heldout` (pictures
        that calibrated; None if training samples did), `samples`, `judged` (of them, those whose picture had visits
        enough), `flagged`, `pictures` (of the samples), `pictures_flagged` (of which a sample was), `captions_flagged`
        (families of samples that share one), `canaries`, `canaries_flagged`, `power` (their share; None without
        canaries),
        `separation` (of canaries along the learnt direction, standard deviations; None without one).
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
    """What the flags of a run say, and what they cannot say, in sentences.

    Args:
        figures: from :func:`calibration_figures`.
        untaught: why no direction was learnt from canaries, where one was to be.
    """
    samples, late = figures["samples"], figures["samples"] - figures["judged"]
    held = figures["heldout"]
    if figures["threshold"] is None:
        few = "ordinary training samples" if held is None else "held-out samples"
        lines = [f"Nothing could be flagged: too few {few} had the visits that a threshold needs."]
    else:
        lines = [
            f"{figures['flagged']:,} of {samples:,} training samples were flagged: their score rose above "
            f"{figures['threshold']:.2f}."
        ]
        if figures["pictures"] != samples:
            lines = [
                f"{figures['pictures_flagged']:,} of {figures['pictures']:,} training pictures were flagged "
                f"({figures['flagged']:,} of {samples:,} files): the score of the file, its picture or its caption "
                f"rose above its threshold ({figures['threshold']:.2f} for a picture of one file)."
            ]
        promised = promise_of(figures)
        lines += [] if promised is None else promised.sentences()
    if late:
        lines.append(
            f"{late:,} of {samples:,} training samples had fewer than {figures['minimum_visits']} counted visits "
            f"{'' if figures['pictures'] == samples else 'of their picture '}and could not be flagged. Train for more "
            "epochs, or lower minimum_visits, to have them judged."
        )
    if figures["canaries"]:
        canaries, found = figures["canaries"], figures["canaries_flagged"]
        lines.append(f"Of {canaries} canaries, samples known to be repeated, {found} were flagged.")
    return "\n".join([*lines, *([untaught] if untaught else [])])


def why_untaught(calibration: Calibration) -> str | None:
    """Why no direction was learnt from canaries, and what to do; None where one was, or none was to be."""
    found = calibration.untaught()
    if found is None:
        return None
    needed = calibration.taught.ordinary_needed()
    return (
        f"Canaries taught nothing: {found[0]} of them and {found[1]} ordinary samples had visits enough (needed: "
        f"{MINIMUM_CANARIES} and {needed}), or they did not stand out. Flags rest on the mean "
        "square of all values instead. Train for more epochs or on more samples, repeat canaries more often, or flag "
        "by one signal."
    )


STREAMED = "StreamedImages"
"""In the configuration of a run whose images an evaluation cannot ask for."""


def next_step(table: pa.Table, run: Path) -> str:
    """The command that looks into what was found.

    Args:
        table: from :func:`memtrain.evidence.evidence_table.evidence_table`.
        run: the run folder; `memtrain measure --run` reads the configuration that `memtrain train` leaves there.
    """
    config = run / "config.yaml"
    if config.is_file() and STREAMED in config.read_text(encoding="utf-8", errors="replace"):
        return (
            f"Next: memtrain measure --model {run / 'pipeline'} --data IMAGES --heldout OTHERS "
            "(a stream does not give its images again; docs/streaming.md says how some are kept)"
        )
    if config.is_file():
        return f"Next: memtrain measure --run {run}"
    if pc.any(pc.and_(table["flagged"], pc.greater(pc.utf8_length(table["caption"]).fill_null(0), 0))).as_py():
        return (
            "Next: save the trained model as a diffusers pipeline folder and score the flagged captions: "
            f"memtrain detect --model FOLDER --prompts {run / 'flagged.csv'}"
        )
    return f"Next: look into {run / 'records'} (evidence.parquet has one row per sample)"
