"""The record table that the monitor opens, appends to, continues, and sums up at the end of a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from memtrain.errors import RecordError
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.evidence_table import evidence_table, print_summary, write_flagged
from memtrain.evidence.onset import onset_figures, onset_sentences
from memtrain.evidence.verdict import calibration_figures
from memtrain.evidence.visit_summary import NEEDED, summarise
from memtrain.families.table import Families
from memtrain.files.output import harmless_output
from memtrain.files.step_parts import write_tables
from memtrain.functional.statistics import MINIMUM_CALIBRATING
from memtrain.monitoring.data_protocol import KnownSample, by_key, known_samples
from memtrain.monitoring.earlier_records import bring_records, require_rows
from memtrain.monitoring.family_index import family_index, training_keys
from memtrain.monitoring.heldout_keys import HeldoutKeys
from memtrain.monitoring.host import Host
from memtrain.monitoring.recorded_values import RecordedValues
from memtrain.monitoring.visits import Visits
from memtrain.records import (
    RecordWriter,
    drop_newer,
    iterate_steps,
    read_steps,
    set_aside,
    write_parquet,
    written_whole,
)

log = logging.getLogger(__name__)

CHUNK = 2**16
"""Number of samples written at a time."""
SAMPLES = pa.schema(
    [
        *(("key", pa.string()), ("caption", pa.string()), ("split", pa.string()), ("visits_per_epoch", pa.int64())),
        *(("group", pa.string()), ("picture_family", pa.string()), ("caption_family", pa.string())),
    ]
)
"""Columns of `samples.parquet`."""
OWN = ("steps", "samples.parquet")
"""The first files that a run writes to its records."""


class RunRecords:
    """The records in the folder `records/` of a run.

    Args:
        host: the host of the run.
        columns: the names of the values of a visit.
        batches_done: number of batches in the checkpoint that the run goes on from; None for a new run, which sets the
            records of an earlier run aside.
        rows: number of rows that the first process had recorded by the checkpoint; None if the checkpoint does not say.

    Raises:
        RecordError: if the number of rows differs, or if rows cannot be written.
    """

    def __init__(
        self, host: Host, columns: Sequence[str], *, batches_done: int | None, rows: int | None = None
    ) -> None:
        self.host, self.run, self.columns = host, host.folder, list(columns)
        self.folder = self.run / "records"
        self._rows = rows or 0
        if host.rank == 0:
            if batches_done is not None:
                bring_records(self.folder, checkpoint=host.checkpoint, batches_done=batches_done)
                drop_newer(self.folder, batches_done)
                require_rows(self.folder, rows)
            elif _is_foreign(self.folder):
                raise RecordError(
                    f"{self.folder} holds other files than the records of a run",
                    expected="a run folder without another folder `records`",
                    remedy="choose another run folder with --trainer.default_root_dir",
                )
            elif (kept := set_aside(self.folder)) is not None:
                log.warning("The records of an earlier run are kept in %s", kept)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(
                f"Records cannot be written to {self.folder}: {error.strerror}",
                expected="a folder in which this process may write",
                remedy="choose another run folder with --trainer.default_root_dir",
            ) from error
        host.barrier()
        self.writer = RecordWriter(self.folder, rank=host.rank)
        if host.rank == 0:
            self._write_samples(host.data)

    def _write_samples(self, data: Any) -> None:
        train, held = known_samples(data, "train"), known_samples(data, "heldout")
        if not train:
            return
        visits, groups = by_key(data, "visits_per_epoch"), by_key(data, "groups")
        families = family_index(self.host) or Families()

        def rows(samples: Sequence[KnownSample], split: str) -> Iterator[pa.Table]:
            for start in range(0, len(samples), CHUNK):
                some = samples[start : start + CHUNK]
                keys = [sample.key for sample in some]
                counts = [visits.get(key) if split == "train" else 0 for key in keys]
                columns = (keys, [sample.caption for sample in some], [split] * len(keys), counts)
                named = (map(groups.get, keys), map(families.picture, keys), map(families.caption, keys))
                given = zip((*columns, *named), SAMPLES.types, strict=True)
                yield pa.table([pa.array(column, kind) for column, kind in given], schema=SAMPLES)

        tables = chain(rows(train, "train"), rows(held, "heldout"))
        write_tables(tables, SAMPLES, self.folder / "samples.parquet")
        found = getattr(data, "families", None)
        if isinstance(found, Families):
            keys = [sample.key for sample in chain(train, held)]
            found.write(self.folder / "families.parquet", dict.fromkeys([*keys, *found.pictures, *found.captions]))

    def append(self, visits: Sequence[Visits]) -> None:
        """Add visits that are not in the table yet."""
        for batch in visits:
            if not batch.recorded:
                self.writer.append(batch.batch, batch.rows(self.columns))
                batch.recorded = True
                self._rows += len(batch.keys)

    def rows_with(self, visits: Sequence[Visits]) -> int:
        """Return the number of rows of this process, with visits that are not added yet."""
        return self._rows + sum(len(batch.keys) for batch in visits if not batch.recorded)

    def flush(self) -> None:
        """Write the appended rows, because a checkpoint is about to be written."""
        self.writer.checkpoint()

    def unread(self, *, first: int, last: int) -> list[Visits]:
        """Return this process's visits of the batches from `first` to before `last`, ordered by batch.

        Visits of samples that are no longer in the data are left out, if the data name their samples. These samples
        were excluded (:mod:`memtrain.cli.rewind`), and have no profile.
        """
        if first == last:
            return []
        rows, held = read_steps(self.folder, first=first).to_pylist(), training_keys(self.host)
        mine = [row for row in rows if row["rank"] % self.host.world_size == self.host.rank]
        mine = [row for row in mine if not held or row["key"] in held]
        return Visits.from_rows(mine, self.columns)

    def finish(self, calibration: Calibration, values: RecordedValues, *, held_out: HeldoutKeys) -> None:
        """Write evidence.parquet, calibration.json and flagged.csv, and print the most suspicious samples.

        Args:
            calibration: the calibration at the end of the run.
            values: object that compares recorded values with the base model, for columns without evidence.
            held_out: the rule for samples held out by weight, which are no training samples.
        """
        self.flush()
        self.host.barrier()
        if self.host.rank != 0:
            return
        data, names = self.host.data, values.readings.columns
        known = {sample.key: sample.caption for sample in known_samples(data, "train")}
        rows = iterate_steps(self.folder, [*dict.fromkeys([*NEEDED, *values.needed])])
        seen, apart = summarise(rows, values, columns=values.columns), []
        if held_out.share:
            trained = pa.array([key not in held_out for key in seen["key"].to_pylist()], pa.bool_())
            apart, seen = seen.filter(pc.invert(trained))["key"].to_pylist(), seen.filter(trained)
        table = evidence_table(
            seen,
            calibration,
            names,
            {**self.host.captions, **known},
            by_key(data, "visits_per_epoch"),
            groups=by_key(data, "groups"),
        )
        write_parquet(table, self.folder / "evidence.parquet")
        write_flagged(table, self.run / "flagged.csv")
        keys = [key for key in dict.fromkeys([*known, *table["key"].to_pylist()]) if key not in held_out]
        figures = calibration_figures(calibration, keys)
        if held_out.share:
            figures["held_out_by_weight"] = len(apart)
        losses = [index for index, name in enumerate(names) if name == "denoising_loss" and values.compares]
        figures |= onset_figures(calibration.first_flagged, calibration.curve.points(losses[0]) if losses else [])
        with written_whole(self.folder / "calibration.json") as unfinished:
            unfinished.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        notes = onset_sentences(figures, samples=len(keys), edited=bool(by_key(data, "copied_from")))
        if held_out.share:
            notes.append(_held_out_by_weight(len(apart), len(keys), share=held_out.share))
        with harmless_output():
            print_summary(table, calibration, self.run, keys=keys, note="\n".join(notes) or None)


def _is_foreign(folder: Path) -> bool:
    """Return whether a folder holds files, but no file that a run writes."""
    return folder.exists() and any(folder.iterdir()) and not any((folder / name).exists() for name in OWN)


def _held_out_by_weight(apart: int, trained: int, *, share: float) -> str:
    note = (
        f"{apart:,} samples of {apart + trained:,} were held out by weight. They were in the batches but were not "
        f"trained on (heldout_share={share:g}; 0 trains on all, and the threshold then rests on the bulk of the "
        "training samples)."
    )
    if apart < MINIMUM_CALIBRATING:
        note += f" A threshold needs {MINIMUM_CALIBRATING} of them, so raise heldout_share."
    return note
