"""The results of the monitor at the end of training: the evidence table, flagged.csv, and a table on the screen.

`evidence.parquet` has one row per training sample that was visited, or belongs to a flagged family. Its columns are:

- `key`, `caption`, `group` (:mod:`memtrain.records`), `picture_family`, `caption_family`
  (:mod:`memtrain.families.table`), `visits_per_epoch`;
- `visits`: number of visits of this file;
- one column per signal value: mean over the counted visits, relative to the base model, as a log-ratio for
  `denoising_loss` and a difference in nats for `attention_entropy.<site>`;
- `score`: accumulated evidence, high when memorized, of the level that comes closest to a flag
  (:mod:`memtrain.evidence.levels`);
- `p_value`: p-value of its picture's highest score in the run, corrected for the number of pictures;
- `flagged`: whether it, its picture or its caption was above the threshold at any visit;
- `flagged_by`: `sample`, `picture` or `caption`; null without a flag;
- `first_flagged_step`: number of optimizer steps before the flag;
- `flagged_share`: share of flagged visits; null without any visit;
- `skipped`: share of visits with weight 0; null without any visit.

The table on the screen has one row per picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.levels import COMMON
from memtrain.evidence.verdict import calibration_figures, next_step, verdict, why_untaught
from memtrain.families.table import Families
from memtrain.files.sheet_cells import write_cells
from memtrain.files.shown import shown
from memtrain.files.whole import written_whole

ENTROPY = "attention_entropy."
"""Beginning of the names of all sites' entropies."""


def evidence_table(
    seen: pa.Table,
    calibration: Calibration,
    columns: Sequence[str],
    captions: Mapping[str, str],
    visits_per_epoch: Mapping[str, int],
    *,
    groups: Mapping[str, str] | None = None,
) -> pa.Table:
    """Build the table with one row per training sample, most suspicious first.

    Args:
        seen: the summary of the records for each sample, from :func:`memtrain.evidence.visit_summary.summarise`.
        calibration: the calibration with the accumulated evidence.
        columns: the names of the signal values.
        captions: the caption of each key, if known.
        visits_per_epoch: the planned visits of each key, if known.
        groups: the group of each key, if known.
    """
    levels = calibration.levels
    keys: list[str] = seen["key"].to_pylist()
    levels.adopt(keys)
    visited = frozenset(keys)
    unseen = [key for key in levels.first_flagged if key not in visited and key not in levels.apart]
    keys += unseen
    steps_flagged = [levels.first_flagged.get(key) for key in keys]
    families = levels.families or Families()
    # Evidence exists for the columns that decide on flags.
    means = calibration.means(keys).T
    kept = dict(zip(columns[calibration.scored], means, strict=True))
    nothing = pa.nulls(len(unseen), pa.float64())
    table = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "caption": pa.array(map(captions.get, keys), pa.string()),
            "group": pa.array(map((groups or {}).get, keys), pa.string()),
            "picture_family": pa.array(map(families.picture, keys), pa.string()),
            "caption_family": pa.array(map(families.caption, keys), pa.string()),
            "visits_per_epoch": pa.array(map(visits_per_epoch.get, keys), pa.int32()),
            "visits": _with(seen["visits"], pa.array([0] * len(unseen), pa.int64())),
            **{
                name: pa.array(kept[name].numpy())
                if name in kept
                else _with(seen[name], pa.array([math.nan] * len(unseen), pa.float64()))
                if name in seen.column_names
                else pa.array([math.nan] * len(keys), pa.float64())
                for name in columns
            },
            "score": pa.array(calibration.scores(keys).numpy()),
            "p_value": pa.array(calibration.p_values(keys).numpy()),
            "flagged": pa.array([step is not None for step in steps_flagged], pa.bool_()),
            "flagged_by": pa.array(map(levels.flagged_by.get, keys), pa.string()),
            "first_flagged_step": pa.array(steps_flagged, pa.int64()),
            "flagged_share": _with(seen["flagged_share"], nothing),
            "skipped": _with(seen["skipped"], nothing),
        }
    )
    order = [("flagged", "descending"), ("first_flagged_step", "ascending"), ("score", "descending")]
    return table.sort_by(order)


def _with(column: pa.ChunkedArray, more: pa.Array) -> pa.ChunkedArray:
    return pa.chunked_array([*column.chunks, more], column.type)


FLAGGED_COLUMNS = (
    *("key", "caption", "picture_family", "caption_family", "flagged_by"),
    *("visits", "score", "p_value", "first_flagged_step"),
)
"""Columns of `flagged.csv`."""


def write_flagged(table: pa.Table, path: Path) -> None:
    """Write the flagged rows as CSV, with every file of a flagged picture or caption, even without visits."""
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        flagged = table.filter(table["flagged"]).select(FLAGGED_COLUMNS)
        rows = ([row[name] for name in FLAGGED_COLUMNS] for row in flagged.to_pylist())
        write_cells(file, FLAGGED_COLUMNS, rows)


def pictures_in(table: pa.Table, most: int | None = None) -> list[dict[str, Any]]:
    """Return one row per picture, in the order of its most suspicious file, with sums over its files.

    Args:
        table: from :func:`evidence_table`.
        most: largest number of pictures; default all.

    Returns:
        Rows of `table` with `files`, and `visits`, signal values and `skipped` of all files, by visits.
    """
    if most is not None:
        first = pc.unique(table["picture_family"]).slice(0, most)
        table = table.filter(pc.is_in(table["picture_family"], value_set=first))
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        found.setdefault(row["picture_family"], []).append(row)
    pictures = []
    for rows in found.values():
        visited = [row for row in rows if row["visits"]]
        whole = dict(rows[0], files=len(rows), visits=sum(row["visits"] for row in rows))
        for name in [name for name in whole if name in ("denoising_loss", "skipped") or name.startswith(ENTROPY)]:
            told = [(row[name], row["visits"]) for row in visited if row[name] is not None and row[name] == row[name]]
            if len(rows) > 1:
                whole[name] = sum(value * count for value, count in told) / max(1, sum(count for _, count in told))
                whole[name] = whole[name] if told else math.nan
        pictures.append(whole)
    return pictures


def print_summary(
    table: pa.Table,
    calibration: Calibration,
    run: Path,
    *,
    keys: Sequence[str] | None = None,
    most: int = 12,
    note: str | None = None,
) -> None:
    """Print the most suspicious pictures and the next command.

    Args:
        table: from :func:`evidence_table`.
        calibration: the calibration with the threshold.
        run: the run folder.
        keys: the keys of all training samples; default the visited samples.
        most: largest number of pictures to show.
        note: a further sentence about the monitoring of the run.
    """
    pictures = pictures_in(table, most)
    several = pc.count_distinct(table["picture_family"]).as_py() < len(table)
    screen = Table(title="Most suspicious training pictures", title_justify="left")
    screen.add_column("key / caption")
    names = ("counted\nvisits", "loss", "entropy", "score", "flagged at", "skipped")
    for name in (*(("files",) if several else ()), *names):
        screen.add_column(name, justify="right", no_wrap=True)
    console = Console()
    wide = max(20, console.width - (72 if several else 64))
    counted = calibration.counted_visits([row["key"] for row in pictures])
    entropies = [name for name in table.column_names if name.startswith(ENTROPY)]
    for row, counted_visits in zip(pictures, counted, strict=True):
        changes = [row[name] for name in entropies if not math.isnan(row[name])]
        loss = row.get("denoising_loss", math.nan)
        screen.add_row(
            "\n".join(
                text if len(text) <= wide else text[: wide - 1] + "…"
                for text in (shown(row["key"]), shown(row["caption"] or ""))
            ),
            *((str(row["files"]),) if several else ()),
            str(counted_visits),
            "" if math.isnan(loss) else f"{100 * math.expm1(loss):+.0f} %",
            f"{max(changes, key=abs):+.3f}" if changes else "",
            f"{row['score']:.1f}",
            "" if row["first_flagged_step"] is None else f"step {row['first_flagged_step']}",
            "" if row["skipped"] is None or math.isnan(row["skipped"]) else f"{100 * row['skipped']:.0f} %",
        )
    console.print(screen, markup=False)
    figures = calibration_figures(calibration, table["key"].to_pylist() if keys is None else keys)
    common = _common_captions(table, calibration)
    notes = [verdict(figures, untaught=why_untaught(calibration)), *([note] if note else []), *common]
    notes.append(next_step(table, run))
    console.print(
        "Column loss: mean change of the denoising loss since the base model. Column entropy: largest mean change of "
        "the attention entropy at one site since the base model, nats. Column skipped: share of the recorded visits "
        "without gradient. A replaced picture has no recorded visits after its flag.\n" + "\n".join(notes),
        markup=False,
        soft_wrap=True,
    )


def _common_captions(table: pa.Table, calibration: Calibration) -> list[str]:
    """Return a sentence on captions that too many pictures share to flag them; empty without such captions."""
    common = calibration.levels.common
    if not common:
        return []
    first = min(common)
    captions = table.filter(pc.equal(table["key"], first))["caption"].to_pylist()
    return [
        f"{len(common)} captions are shared by more than {100 * COMMON:g} % of the pictures, so they flag no pictures. "
        f"The first is {(captions[0] if captions else None) or first!r}."
    ]
