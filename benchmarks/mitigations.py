"""Every mitigation during training, on the embedded default: what it stops, what it costs, how long it takes.

    python benchmarks/mitigations.py --seeds "[0, 1, 2]" --jobs 2 --figure docs/mitigations.png      # the table
    python benchmarks/mitigations.py --seeds "[0, 1, 2]" --jobs 2 --dose true --dose_figure docs/dose.png
    python benchmarks/mitigations.py --timing {}                                  # alone on the machine
    python benchmarks/mitigations.py --markdown true                              # the tables of RESULTS.md

Figures are added to the JSON file as soon as a run is finished. A run in the file is not repeated, even if it was run
on another machine. An interrupted run goes on from its last checkpoint. A run that fails is reported and stops no
other. Without seeds nothing is trained, and the file is shown as it is. Training and evaluation use one thread each:
two of them at a time (`--jobs 2`) do more on two cores than one with two threads.

Rows are in `mitigation_rows.py`. A row trains `configs/tiny_baseline.yaml` with one overlay of `configs/callbacks/`.
"""

from __future__ import annotations

import json as text
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from experiment import ROOT, CommandError, train_and_evaluate
from jsonargparse import auto_cli
from mitigation_figures import draw, draw_doses, draw_pictures
from mitigation_results import Store, run_figures
from mitigation_rows import (
    DOSE_ROWS,
    DOSE_SETTING,
    EVALUATION,
    ROWS,
    SETTING,
    WATCHING,
    Row,
    chosen,
    identity,
    missing_overlays,
    read_flagged,
    training_arguments,
    write_captions,
    write_flagged,
)
from mitigation_tables import markdown_tables, table
from rich.console import Console

from memtrain.records import set_aside

console = Console(width=240, soft_wrap=True)


@dataclass(frozen=True)
class Part:
    """Runs that belong together.

    Attributes:
        name: under which their figures are kept.
        setting: options of every run.
    """

    name: str
    setting: Mapping[str, Any]


@dataclass(frozen=True)
class Timing:
    """How the time per step is measured.

    Attributes:
        pairs: short runs of each row and of plain training.
        steps: the number of steps of a short run, a multiple of 8.
        threads: the number of threads of each run.
    """

    pairs: int = 5
    steps: int = 48
    threads: int = 2


TABLE, DOSE = Part("rows", SETTING), Part("dose", DOSE_SETTING)


def run(row: Row, seed: int, *, part: Part, store: Store, folder: Path) -> None:
    """Train and evaluate one row with one seed, and keep its figures.

    Args:
        row: the row.
        seed: the seed.
        part: what it belongs to.
        store: where the figures are kept.
        folder: the folder of the benchmark.

    Raises:
        CommandError: if training or evaluation fails, or what the row needs is not there.
    """
    name = f"{row.name}-seed{seed}" if part is TABLE else f"{part.name}-{row.name}-seed{seed}"
    place, own = folder / name, identity(row, part.setting)
    claim(place, own)
    evaluation = ["--run", str(place)]
    if row.needs_flags:
        base = store.finished(part.name, ROWS[0].name, seed, identity=identity(ROWS[0], part.setting))
        if base is None:
            raise CommandError(f"{row.name} needs the baseline of seed {seed}, which is not finished")
        write_flagged(folder / f"flagged-seed{seed}.csv", base["flagged_keys"])
        evaluation = ["--run", str(place / "asked"), "--output", str(place / "evaluation")]
    training = training_arguments(row, seed, folder=folder, setting=part.setting)
    results = train_and_evaluate(
        place,
        training,
        evaluation=[*evaluation, *EVALUATION],
        before_evaluation=ask_for_excluded if row.needs_flags else None,
        log=folder / f"{name}.log",
        threads=1,
    )
    figures = {"identity": own, **run_figures(results, folder=folder)}
    if row.name == ROWS[0].name:
        figures["flagged_keys"] = sorted(read_flagged(place / "flagged.csv"))
    store.add(part.name, row.name, seed, figures=figures)


def claim(place: Path, own: dict[str, Any]) -> None:
    """Keep a run of the same name that was another one out of the way."""
    path = place / "identity.json"
    if place.is_dir() and (not path.is_file() or text.loads(path.read_text(encoding="utf-8")) != own):
        set_aside(place)
    place.mkdir(parents=True, exist_ok=True)
    path.write_text(text.dumps(own), encoding="utf-8")


def ask_for_excluded(place: Path) -> None:
    """A folder in a trained run whose data are those of the baseline, so that excluded images are asked for too."""
    config = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))
    config["data"]["init_args"]["exclude"] = None
    asked = place / "asked"
    asked.mkdir(exist_ok=True)
    (asked / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    if not (asked / "pipeline").exists():
        (asked / "pipeline").symlink_to(place / "pipeline", target_is_directory=True)


def run_all(rows: list[Row], seeds: list[int], *, part: Part, store: Store, folder: Path, jobs: int) -> list[str]:
    """Run what is not finished, `jobs` at a time: seed by seed, and the rows that need the baseline last.

    Returns:
        The failures.
    """
    todo = [
        (row, seed)
        for position, seed in enumerate(seeds)
        for row in rows
        if position < row.seeds
        and store.finished(part.name, row.name, seed, identity=identity(row, part.setting)) is None
    ]
    failed: list[str] = []

    def attempt(pair: tuple[Row, int]) -> None:
        row, seed = pair
        console.print(f"{part.name}: {row.name}, seed {seed}", markup=False)
        try:
            run(row, seed, part=part, store=store, folder=folder)
        except CommandError as error:
            failed.append(f"{row.name}, seed {seed}: {error}")
            console.print(f"FAILED {failed[-1]}", markup=False)

    for last in (False, True):
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(attempt, [pair for pair in todo if pair[0].needs_flags is last]))
    return failed


def time_rows(rows: list[Row], *, store: Store, folder: Path, timing: Timing) -> None:
    """Measure time per step of every row, of plain training, and of the reference profile."""
    # Here, because what shows figures needs neither Lightning nor models.
    from mitigation_timing import Course, compare, profile_seconds

    torch.set_num_threads(timing.threads)
    course = Course(folder, steps=timing.steps)
    course.run(None)
    store.set_timing("profile", profile_seconds(course))
    course.run(ROWS[0])
    for row in rows:
        console.print(f"timing: {row.name}", markup=False)
        found = compare(course, row, pairs=timing.pairs)
        store.set_timing(row.name, found)
        store.set_timing("plain", {"seconds": found["seconds_plain"], "threads": found["threads"]})


def main(
    seeds: list[int] | None = None,
    *,
    rows: list[str] | None = None,
    json: str = "benchmarks/mitigations.json",
    folder: str = "runs/mitigations",
    jobs: int = 1,
    dose: bool = False,
    timing: Timing | None = None,
    figure: str | None = None,
    dose_figure: str | None = None,
    pictures: str | None = None,
    markdown: bool = False,
) -> None:
    """Run what is missing, and show what there is.

    Args:
        seeds: seeds to run; without any, nothing is trained.
        rows: names of the rows, which then run with every seed; default all, each with as many seeds as its row wants.
        json: file of the figures, which is read first.
        folder: where the runs, their logs and the profiles are kept.
        jobs: runs at a time, one thread each.
        dose: run the dose curve instead of the table.
        timing: measure the time per step instead, `--timing {}` or for instance `--timing.pairs 3`.
        figure: draw the table there, as PNG.
        dose_figure: draw the dose curve there, as PNG.
        pictures: draw generations of the baseline and of the recommended run of the first seed there, as PNG.
        markdown: print the tables of RESULTS.md.
    """
    store, place = Store(ROOT / json), ROOT / folder
    wanted = chosen(DOSE_ROWS if dose else (*ROWS, *WATCHING) if timing else ROWS, rows)
    for row in wanted:
        if absent := missing_overlays(row):
            console.print(f"{row.name} is left out: no configs/callbacks/{absent[0]}.yaml", markup=False)
    wanted = [row for row in wanted if not missing_overlays(row)]
    if rows is not None:
        wanted = [replace(row, seeds=len(seeds or ())) for row in wanted]
    failed: list[str] = []
    if seeds or timing:
        write_captions(place / "captions.jsonl")
    if timing:
        time_rows(wanted, store=store, folder=place, timing=timing)
    elif seeds:
        part = DOSE if dose else TABLE
        failed = run_all(wanted, seeds, part=part, store=store, folder=place, jobs=jobs)
    console.print(table(store.content))
    if markdown:
        print(markdown_tables(store.content))
    if figure:
        draw(store.content, ROOT / figure)
    if dose_figure:
        draw_doses(store.content, ROOT / dose_figure)
    if pictures:
        draw_pictures(place, (seeds or [0])[0], ROOT / pictures)
    if failed:
        raise SystemExit("\n".join([f"{len(failed)} run(s) failed:", *failed]))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
