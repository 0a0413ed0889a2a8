"""Every stated false-positive rate against the empirical one: simulated data without memorization, over seeds.

    python benchmarks/rates.py --json benchmarks/rates.json
    python benchmarks/rates.py --runs 5            (five times as many runs of each row)
    python benchmarks/rates.py --only monitor

`rate_scenarios.py` has the simulations. Each row has the promised rate (for the monitor, on average over the draw of
the held-out samples), the mean over runs with a bootstrap interval, and the worst run. It also says whether the rate
holds, which means that it does not lie below the lower end of the interval. Rows of the bulk promise nothing and are
measured all the same. Every run is added to the JSON file when it is done, and not repeated. The quick form takes ten
minutes on one idle core. `--table` prints the table of `memtrain/evidence/measured_rates.py` that belongs to the file.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rate_scenarios as scenarios
import torch

from memtrain.evidence.promise import promise
from memtrain.functional.ranking import mean_with_interval
from memtrain.records import write_json

HERE = Path(__file__).resolve().parent
MONITORED = {8: 24, 30: 20, 120: 12, 1000: 3}
"""Held-out samples, and runs of each kind of data in the quick form."""
BULK = ("independent, normal", "samples hardly differ", "heavy tails (t, 3 degrees)", "seven unsigned columns")
"""Kinds of data that are simulated without held-out samples."""


@dataclass(frozen=True)
class Cell:
    """A simulation, which gives a rate for each of several names.

    Attributes:
        group: what is simulated.
        kind: the kind of data.
        count: held-out samples, null prompts or candidates.
        runs: in the quick form.
        run: seed to rates.
        promised: the promised rates by name; a name without one is measured only.
    """

    group: str
    kind: str
    count: int
    runs: int
    run: Callable[[int], dict[str, float]]
    promised: dict[str, float | None]

    @property
    def name(self) -> str:
        """In the JSON file."""
        return f"{self.group}: {self.kind}, {self.count}"


def cells() -> Iterator[Cell]:
    """All simulations, the fast ones first."""
    for noise in ("normal", "log-normal", "heavy tails (t, 3 degrees)"):
        names = ("one detector", "three detectors", "any named (Holm)", "false share (BH)")
        made = dict.fromkeys(names, 0.05)
        yield Cell("prompts", noise, 499, 300, lambda seed, noise=noise: scenarios.prompts(noise, seed), made)
    for count in (20, 60, 200):
        rate = max(0.01, 1 / (count + 1))
        above = max(1, int(rate * (count + 1) + 1e-9))
        for kind, spread in (("generations alike", 0.2), ("generations differ", 2.0)):
            promised = {f"{rate:.2g}": above / (count + 1), "bound fails": 0.05}
            yield Cell(
                "copies",
                kind,
                count,
                300,
                lambda seed, spread=spread, count=count: scenarios.copies(spread, count, seed),
                promised,
            )
    yield Cell("exposure", "heavy tails", 100, 50, lambda seed: scenarios.exposure(100, seed), {"0.01": 0.01})
    for kind, files, span in (("pictures of 5 files", 5, 1), ("captions of 5 pictures", 1, 5)):
        yield Cell(
            "levels", kind, 100, 12, lambda seed, f=files, s=span: scenarios.levels(f, s, seed), {"0.01": 1 / 101}
        )
    for count, runs in MONITORED.items():
        for kind, made in scenarios.KINDS.items():
            yield Cell(
                "monitor",
                kind,
                count,
                runs,
                lambda seed, made=made, count=count: scenarios.monitor(made, count, seed),
                {f"{rate:g}": _promised(count, rate) for rate in scenarios.RATES},
            )
    for kind in BULK:
        rates: dict[str, float | None] = {f"{rate:g}": None for rate in scenarios.RATES}
        yield Cell("bulk", kind, 0, 6, lambda seed, kind=kind: scenarios.monitor(scenarios.KINDS[kind], 0, seed), rates)


def _promised(count: int, rate: float) -> float | None:
    found = promise(count, rate)
    return None if found is None else found.rate


def measure(cell: Cell, done: list[dict[str, float]], *, runs: int) -> Iterator[list[dict[str, float]]]:
    """All runs so far, after each one that `done` lacks."""
    for seed in range(len(done), runs):
        done = [*done, cell.run(seed)]
        yield done


def rows(cell: Cell, done: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """A row per name: what is promised, and what was found."""
    found = []
    for name, promised in cell.promised.items():
        shares = [one[name] for one in done]
        figures = mean_with_interval(torch.tensor(shares, dtype=torch.float64))
        low = figures["interval"][0] if isinstance(figures["interval"], list) else math.nan
        found.append(
            {
                "group": cell.group,
                "kind": cell.kind,
                "count": cell.count,
                "name": name,
                "promised": promised,
                **figures,
                "worst": max(shares),
                "runs": len(shares),
                "holds": None if promised is None else not low > promised,
            }
        )
    return found


def shown(row: dict[str, Any]) -> str:
    """One line of the table, in percent."""
    low, high = row["interval"] or (math.nan, math.nan)
    promised = "-" if row["promised"] is None else f"{100 * row['promised']:.3g}"
    verdict = {None: "", True: "holds", False: "BROKEN"}[row["holds"]]
    return (
        f"{row['group']:9} {row['kind']:28} {row['count']:>5} {row['name']:18} {promised:>6} "
        f"{100 * row['mean']:7.2f} ({100 * low:.2f}-{100 * high:.2f})  worst {100 * row['worst']:5.1f} "
        f"of {row['runs']:>3}  {verdict}"
    )


def measured_table(kept: Sequence[dict[str, Any]]) -> dict[tuple[int, float], tuple[float, float, str]]:
    """Return the table of `memtrain/evidence/measured_rates.py`: the worst kind of data for each number and rate."""
    found: dict[tuple[int, float], tuple[float, float, str]] = {}
    for row in kept:
        if row["group"] in ("monitor", "bulk"):
            at = row["count"], float(row["name"])
            here = round(row["mean"], 4), round(row["worst"], 4), row["kind"]
            found[at] = max(found.get(at, here), here)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 1 if a promised rate is broken."""
    parser = argparse.ArgumentParser(description="Every stated false-positive rate against the empirical one.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the runs, and go on from those in it")
    parser.add_argument("--runs", type=float, default=1.0, help="times as many runs as in the quick form")
    parser.add_argument("--only", default="", metavar="TEXT", help="simulations whose name has this in it")
    parser.add_argument("--table", action="store_true", help="print the table for memtrain/evidence/measured_rates.py")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kept: dict[str, Any] = {"runs": {}, "rows": []}
    if options.json is not None and options.json.is_file():
        kept = json.loads(options.json.read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = []
    for cell in cells():
        done = kept["runs"].get(cell.name, [])
        if options.only in cell.name:
            for done in measure(cell, kept["runs"].get(cell.name, []), runs=max(1, round(options.runs * cell.runs))):
                kept["runs"][cell.name] = done
                if options.json is not None and (len(done) % 50 == 0 or cell.group in ("monitor", "bulk", "levels")):
                    write_json(kept, options.json)
        if done:
            found += rows(cell, done)
            for row in found[-len(cell.promised) :] if not options.table else ():
                print(shown(row), flush=True)
    if options.json is not None:
        write_json({**kept, "rows": found}, options.json)
    if options.table:
        for at, here in sorted(measured_table(found).items()):
            print(f"    {at}: {here},")
    return int(any(row["holds"] is False for row in found))


if __name__ == "__main__":
    raise SystemExit(main())
