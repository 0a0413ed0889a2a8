"""How often ordinary samples are flagged, against the stated rate, and how soon duplicates are: simulated signals.

Every run feeds :class:`memtrain.evidence.calibration.Calibration` as a training does, batch by batch. Two tables:

- *rates*: the share of 200 ordinary samples, each visited 40 times, that is flagged at any time. `repeated, not
  memorized` has five samples that are visited 50 times an epoch and are ordinary otherwise, and gives their share.
  Files
  of one picture and pictures of one caption are judged on three levels, and are all alike here, which is the worst.
- *duplicates*: a few samples are visited far more often than the others and stand out by four standard deviations of a
  visit ("ideal signal"). Batches have 16 samples, and every fourth batch counts. When the first is flagged, how often
  each
  duplicate has been trained on by then, how many are found, and how many others are flagged.

`--visits` compares numbers of counted visits from which a sample calibrates; a flag itself always needs six. The second
line of a scenario is the rule of a run without held-out samples, or held-out samples that calibrate from one visit on.

    python benchmarks/flag_rates.py --json benchmarks/flag_rates.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtrain.evidence.calibration import Calibration
from memtrain.families.table import Families
from memtrain.functional.ranking import mean_with_interval

RATES = (0.001, 0.01, 0.05)
"""Stated false-positive rates."""


@dataclass(frozen=True)
class Scenario:
    """The properties of samples and their visits.

    Attributes:
        name: in the table.
        samples: number of them, held-out ones included.
        between: standard deviation between samples; that of a visit is 1.
        drift: the drift of all values, per epoch.
        heavy: visits follow Student's distribution with 3 degrees of freedom.
        pairs: every two samples share what they are like.
        files: the number of equal files of each picture, which are separate samples.
        span: pictures of each caption, that are the same.
        columns: number of values; of more than one the sign is unknown.
        duplicates: the last ones, of which `repeats` visits are made in an epoch.
        effect: distance by which duplicates stand out.
        heldout: the first ones, that calibrate by their visits; 0 for a run that rests on the bulk.
        epochs: length of a run.
        batch: visits in a batch.
        counted_every: the number of batches of which one counts.
    """

    name: str
    samples: int = 200
    between: float = 0.5
    drift: float = 0.0
    heavy: bool = False
    pairs: bool = False
    files: int = 1
    span: int = 1
    columns: int = 1
    duplicates: int = 0
    repeats: int = 1
    effect: float = 0.0
    heldout: int = 0
    epochs: int = 40
    batch: int = 25
    counted_every: int = 1


_FAMILIES: dict[str, Any] = {"between": 0.2, "heldout": 100, "epochs": 10, "batch": 100}
ORDINARY = (
    Scenario("independent, normal"),
    Scenario("samples hardly differ", between=0.0),
    Scenario("drift of the model", drift=-0.05),
    Scenario("heavy tails (t, 3 degrees)", heavy=True),
    Scenario("correlated in pairs", pairs=True, between=0.7),
    Scenario("seven unsigned columns", columns=7),
    Scenario("pictures of 5 files, 100 held out", files=5, samples=1100, **_FAMILIES),
    Scenario("pictures of 200 files, 100 held out", files=200, samples=6100, **{**_FAMILIES, "batch": 250}),
    Scenario("captions of 5 pictures, 100 held out", span=5, samples=1100, **_FAMILIES),
    Scenario("captions of 50 pictures, 100 held out", span=50, samples=1600, **_FAMILIES),
    Scenario("repeated, not memorized", duplicates=5, repeats=50, epochs=20, batch=16, counted_every=4),
    Scenario("the same, heavy tails", duplicates=5, repeats=50, epochs=20, batch=16, counted_every=4, heavy=True),
    Scenario("20 held out by weight", heldout=20, samples=220),
    Scenario("20 held out, heavy tails", heldout=20, samples=220, heavy=True),
    Scenario(
        "20 held out, repeated", heldout=20, samples=220, duplicates=5, repeats=50, epochs=20, batch=16, counted_every=4
    ),
    Scenario("20 held out, drift", heldout=20, samples=220, drift=-0.05),
)
_SOON = {"effect": 4.0, "batch": 16, "counted_every": 4}
DUPLICATES = (
    Scenario("200 images, 5 of them 50 times", duplicates=5, repeats=50, epochs=25, **_SOON),
    Scenario("5,000 images, 10 of them 200 times", samples=5000, duplicates=10, repeats=200, epochs=10, **_SOON),
    Scenario("the first, effect 1.5", duplicates=5, repeats=50, epochs=25, **{**_SOON, "effect": 1.5}),
    Scenario("the first, 20 held out by weight", duplicates=5, repeats=50, heldout=20, epochs=40, **_SOON),
)


@dataclass
class Outcome:
    """One run.

    Attributes:
        ordinary: share of ordinary samples ever flagged, by stated rate.
        repeated: the same of the duplicates.
        epoch: the epoch of the first flag of a duplicate at a stated 1 %; None if there was none.
        trained: visits, also uncounted ones, that a duplicate had had by then, on average.
    """

    ordinary: dict[float, float] = field(default_factory=dict)
    repeated: dict[float, float] = field(default_factory=dict)
    epoch: float | None = None
    trained: float | None = None


def visits(scenario: Scenario, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
    """Batches of a run: epoch, and rows of the samples."""
    repeats = torch.ones(scenario.samples, dtype=torch.long)
    repeats[scenario.samples - scenario.duplicates :] = scenario.repeats
    rows = torch.arange(scenario.samples).repeat_interleave(repeats)
    for epoch in range(scenario.epochs):
        order = rows[torch.randperm(len(rows), generator=generator)]
        for batch in order.split(scenario.batch):
            yield epoch, batch


def simulate(scenario: Scenario, seed: int, *, calibrating: int | None, rates: Sequence[float] = RATES) -> Outcome:
    """One run, at several stated rates at once.

    Args:
        scenario: what is simulated.
        seed: the seed of the run.
        calibrating: counted visits from which a sample calibrates; None for the class's own rule.
        rates: stated false-positive rates; the time of the first flag is that at the second.
    """
    generator = torch.Generator().manual_seed(seed)
    made = [
        Calibration(
            scenario.columns,
            scored=slice(0, scenario.columns),
            memorized_when="high" if scenario.columns == 1 else "unknown",
            buckets=1,
            false_positive_rate=rate,
            heldout=scenario.heldout > 0,
            calibrating_visits=calibrating,
        )
        for rate in rates
    ]
    count = scenario.samples
    own = scenario.between * torch.randn(count, scenario.columns, generator=generator)
    if scenario.pairs:
        own[1::2] = own[::2]
    own[count - scenario.duplicates :] += scenario.effect
    keys, trained, outcome = [str(row) for row in range(count)], torch.zeros(count), Outcome()
    if scenario.files * scenario.span > 1:
        # One family after the other, behind the held-out samples, of which each stands alone.
        size, first = scenario.files * scenario.span, scenario.heldout
        heads = [row if row < first else row - (row - first) % size for row in range(count)]
        own = own[heads]
        shared = {keys[row]: keys[head] for row, head in enumerate(heads) if row >= first}
        families = Families(shared, {}) if scenario.span == 1 else Families({}, shared)
        for calibration in made:
            calibration.group_by(families, pictures=(count - first) // scenario.files)
    doubles = keys[count - scenario.duplicates :]
    for step, (epoch, batch) in enumerate(visits(scenario, generator)):
        trained += torch.bincount(batch, minlength=count)
        if step % scenario.counted_every:
            continue
        noise = torch.randn(len(batch), scenario.columns, generator=generator)
        if scenario.heavy:
            chi = torch.randn(3, len(batch), 1, generator=generator).square().mean(dim=0)
            noise = noise / chi.sqrt()
        values, held = own[batch] + noise + scenario.drift * epoch, batch < scenario.heldout
        for calibration in made:
            if held.any():
                names = [keys[row] for row in batch[held]]
                calibration.add_heldout(names, [0] * len(names), values[held])
            names = [keys[row] for row in batch[~held]]
            calibration.add(names, [0] * len(names), values[~held], step=step)
        if outcome.epoch is None and bool(made[min(1, len(made) - 1)].ever_flagged(doubles).any()):
            outcome.epoch = epoch + 1
            outcome.trained = float(trained[count - scenario.duplicates :].mean())
    ordinary = keys[scenario.heldout : count - scenario.duplicates]
    for rate, calibration in zip(rates, made, strict=True):
        outcome.ordinary[rate] = float(calibration.ever_flagged(ordinary).float().mean())
        outcome.repeated[rate] = float(calibration.ever_flagged(doubles).float().mean()) if doubles else math.nan
    return outcome


def measure(scenario: Scenario, *, runs: int, calibrating: int | None) -> dict[str, Any]:
    """Several runs of a scenario, and what they have in common."""
    outcomes = [simulate(scenario, seed, calibrating=calibrating) for seed in range(runs)]
    found: dict[str, Any] = {"scenario": asdict(scenario), "calibrating_visits": calibrating, "runs": runs}
    for group in ("ordinary", "repeated"):
        if group == "ordinary" or scenario.duplicates:
            found[group] = {
                f"{100 * rate:g} %": {**mean_with_interval(torch.tensor(shares)), "worst": max(shares)}
                for rate in RATES
                for shares in [[getattr(outcome, group)[rate] for outcome in outcomes]]
            }
    for name in ("epoch", "trained"):
        known = [value for outcome in outcomes if (value := getattr(outcome, name)) is not None]
        found[name] = {"runs": len(known), "median": statistics.median(known) if known else None}
    return found


def shown(found: dict[str, Any]) -> str:
    """One line of the table."""
    visits = found["calibrating_visits"] or "own rule"
    cells = [f"{found['scenario']['name']:36}", f"{visits!s:>8}"]
    for group in ("ordinary", "repeated"):
        for figures in found.get(group, {}).values():
            low, high = figures["interval"] or (math.nan, math.nan)
            cells.append(f"{100 * figures['mean']:6.2f} ({100 * low:.1f}-{100 * high:.1f})")
    if found["epoch"]["median"] is not None:
        cells.append(f"epoch {found['epoch']['median']:g}, trained on {found['trained']['median']:.0f} times")
    return " ".join(cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and keep the figures."""
    parser = argparse.ArgumentParser(description="How often ordinary samples are flagged, and how soon duplicates are.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    parser.add_argument(
        "--runs", type=int, default=12, help="of each scenario of ordinary samples; a third of the others"
    )
    parser.add_argument("--visits", type=int, nargs="*", default=[6, 0], help="0 for the own rule of Calibration")
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios whose name has this in it")
    options = parser.parse_args(arguments)
    print("ordinary samples flagged at a stated 0.1, 1 and 5 % (then repeated ones), percent, with 95 % intervals")
    rows = []
    for scenario in (*ORDINARY, *DUPLICATES):
        runs = options.runs if scenario in ORDINARY else -(-options.runs // 3)
        # Held-out samples calibrate from fewer visits only where that is asked for.
        own = 1 if scenario.heldout else None
        for visits in options.visits if options.only in scenario.name else ():
            rows.append(measure(scenario, runs=runs, calibrating=visits or own))
            print(shown(rows[-1]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
