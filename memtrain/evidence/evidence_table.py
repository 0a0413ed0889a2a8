"""What the monitor leaves at the end of training: the evidence table, flagged.csv, and a table on the screen.

Columns of `evidence.parquet`, one row per training sample: `key`, `caption`, `group` (as in :mod:`memtrain.records`),
`visits_per_epoch`, `visits`, one column per signal value (mean over the counted visits, relative to the base model:
log-ratio for `denoising_loss`, difference in nats for `attention_entropy.<site>`), `score` (accumulated evidence, high
when memorized), `p_value` (of the highest score in the run, corrected for the number of samples), `flagged` (was above
the threshold at some visit), `first_flagged_step` (optimizer steps taken before that was known), `flagged_share` (of
visits), `skipped` (share of visits with weight 0).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.verdict import calibration_figures, next_step, verdict, why_untaught


def evidence_table(
    steps: pa.Table,
    calibration: Calibration,
    columns: Sequence[str],
    captions: Mapping[str, str],
    visits_per_epoch: Mapping[str, int],
    *,
    groups: Mapping[str, str] | None = None,
) -> pa.Table:
    """One row per training sample, most suspicious first.

    Args:
        steps: the step rows of the run.
        calibration: holds the accumulated evidence.
        columns: names of the signal values.
        captions: caption of each key, where known.
        visits_per_epoch: planned visits of each key, where known.
        groups: group of each key, where known.
    """
    steps = steps.append_column("skipped", pc.equal(steps["weight"], 0.0).cast(pa.float32()))
    steps = steps.set_column(steps.column_names.index("flagged"), "flagged_share", steps["flagged"].cast(pa.float32()))
    visits = steps.group_by("key").aggregate([("key", "count"), ("flagged_share", "mean"), ("skipped", "mean")])
    keys = visits["key"].to_pylist()
    samples, width = calibration.samples, len(columns)
    rows = samples.rows(keys)
    # A sample without a counted visit has no mean: NaN.
    means = samples.total.view(-1, width)[rows] / samples.visits.view(-1, width)[rows]
    table = pa.table(
        {
            "key": keys,
            "caption": pa.array([captions.get(key) for key in keys], pa.string()),
            "group": pa.array([(groups or {}).get(key) for key in keys], pa.string()),
            "visits_per_epoch": pa.array([visits_per_epoch.get(key) for key in keys], pa.int32()),
            "visits": visits["key_count"],
            **dict(zip(columns, means.T.tolist(), strict=True)),
            "score": calibration.scores(keys).tolist(),
            "p_value": calibration.p_values(keys).tolist(),
            "flagged": calibration.ever_flagged(keys).tolist(),
            "first_flagged_step": pa.array([calibration.first_flagged.get(key) for key in keys], pa.int64()),
            "flagged_share": visits["flagged_share_mean"],
            "skipped": visits["skipped_mean"],
        }
    )
    order = [("flagged", "descending"), ("first_flagged_step", "ascending"), ("score", "descending")]
    return table.sort_by(order)


def write_flagged(table: pa.Table, path: Path) -> None:
    """The flagged rows as CSV: key, caption, visits, score, p_value, first_flagged_step."""
    names = ["key", "caption", "visits", "score", "p_value", "first_flagged_step"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([row[name] for name in names] for row in table.to_pylist() if row["flagged"])


def print_summary(
    table: pa.Table,
    calibration: Calibration,
    run: Path,
    *,
    keys: Sequence[str] | None = None,
    most: int = 12,
    note: str | None = None,
) -> None:
    """The most suspicious samples, and what to do next.

    Args:
        table: from :func:`evidence_table`.
        calibration: holds the threshold.
        run: the run folder.
        keys: all training samples; default those that were visited.
        most: samples shown.
        note: a sentence more about how the run was watched.
    """
    screen = Table(title="Most suspicious training samples", title_justify="left")
    screen.add_column("key / caption")
    for name in ("visits", "loss", "entropy", "score", "flagged at", "skipped"):
        screen.add_column(name, justify="right", no_wrap=True)
    console = Console()
    wide = max(20, console.width - 64)
    entropies = [name for name in table.column_names if name.startswith("attention_entropy.")]
    for row in table.slice(0, most).to_pylist():
        changes = [row[name] for name in entropies if not math.isnan(row[name])]
        loss = row.get("denoising_loss", math.nan)
        screen.add_row(
            "\n".join(
                text if len(text) <= wide else text[: wide - 1] + "…" for text in (row["key"], row["caption"] or "")
            ),
            str(row["visits"]),
            "" if math.isnan(loss) else f"{100 * math.expm1(loss):+.0f} %",
            f"{max(changes, key=abs):+.3f}" if changes else "",
            f"{row['score']:.1f}",
            "" if row["first_flagged_step"] is None else f"step {row['first_flagged_step']}",
            f"{100 * row['skipped']:.0f} %",
        )
    console.print(screen, markup=False)
    figures = calibration_figures(calibration, table["key"].to_pylist() if keys is None else keys)
    notes = [verdict(figures, untaught=why_untaught(calibration)), *([note] if note else []), next_step(table, run)]
    console.print(
        "loss: mean change of the denoising loss since the base model. entropy: largest mean change of the attention "
        "entropy at one site since the base model, nats. skipped: share of visits without gradient.\n"
        + "\n".join(notes),
        markup=False,
        soft_wrap=True,
    )
