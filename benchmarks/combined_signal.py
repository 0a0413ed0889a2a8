"""Does a combination of signals find memorized samples better than the best single one, on runs it was not fitted on?

    python benchmarks/combined_signal.py --runs "[runs/mitigations/baseline-seed0, runs/mitigations/baseline-seed1]"

The runs differ in their seed and were monitored without mitigations. In turn, one run is left out. On the other runs,
the best single column is chosen with its sign. The direction that the monitor takes from canaries is also fitted
(`flag_by: combined`). Both use the repeated samples as positives. The run left out shows how well each of them orders
its repeated and unique samples. Values are a sample's mean over its last visits, relative to the base model, from
`records/evidence.parquet`.
"""

from __future__ import annotations

import json as text
import math
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.parquet as pq
import torch
from experiment import ROOT
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from memtrain.functional.ranking import auroc
from memtrain.functional.statistics import discriminant

LOSS = "denoising_loss"


def read(run: Path) -> tuple[list[str], Tensor, list[str]]:
    """Names of the columns, their values `(n, columns)`, and each sample's class: `unique`, or what it repeats."""
    table = pq.read_table(run / "records" / "evidence.parquet")
    names = [name for name in table.column_names if name.split(".")[0] in (LOSS, "attention_entropy")]
    rows = [row for row in table.to_pylist() if all(math.isfinite(row[name] or 0) for name in names) and row["visits"]]
    values = torch.tensor([[row[name] for name in names] for row in rows], dtype=torch.float64)
    kinds = [
        f"{row['group']}, {row['visits_per_epoch']} visits per epoch" if row["group"] != "unique" else "unique"
        for row in rows
    ]
    return names, values, kinds


def scores(train: list[tuple[Tensor, list[str]]], test: Tensor, *, names: list[str]) -> dict[str, Tensor]:
    """Scores `(n,)` of the run left out: by single columns, and combined."""
    scaled = []
    for values, kinds in train:
        unique = values[[kind == "unique" for kind in kinds]]
        scaled.append(((values - unique.mean(dim=0)) / unique.std(dim=0), torch.tensor([k != "unique" for k in kinds])))
    ranks = torch.stack([torch.stack([auroc(column, truth) for column in z.T]) for z, truth in scaled]).mean(dim=0)
    sign = torch.where(ranks >= 0.5, 1.0, -1.0).double()
    strength = torch.maximum(ranks, 1 - ranks)
    best = int(strength.argmax())
    entropy = max((i for i, name in enumerate(names) if name != LOSS), key=lambda i: float(strength[i]))
    z, truth = torch.cat([z for z, _ in scaled]), torch.cat([truth for _, truth in scaled])
    direction, _ = discriminant(z[truth], z[~truth])
    spread = torch.stack([values[[k == "unique" for k in kinds]].std(dim=0) for values, kinds in train]).mean(dim=0)
    return {
        "denoising loss": -test[:, names.index(LOSS)],
        "best single entropy": sign[entropy] * test[:, entropy],
        "best single column": sign[best] * test[:, best],
        "combined": (test / spread) @ direction,
    }


def main(runs: list[str], *, json: str | None = None) -> None:
    """Leave out one run after the other.

    Args:
        runs: folders of at least two watched runs of different seeds.
        json: write the figures there.
    """
    if len(runs) < 2:
        raise SystemExit("at least two runs are needed: one is left out, the others choose")
    found = [read(ROOT / run) for run in runs]
    names = found[0][0]
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for left_out, (_, test, kinds) in enumerate(found):
        train = [(values, kinds) for index, (_, values, kinds) in enumerate(found) if index != left_out]
        for method, score in scores(train, test, names=names).items():
            for kind in sorted(set(kinds) - {"unique"}):
                chosen = torch.tensor([k in (kind, "unique") for k in kinds])
                truth = torch.tensor([k == kind for k in kinds])
                figures[kind][method].append(float(auroc(score[chosen], truth[chosen])))
    methods = list(next(iter(figures.values())))
    table = Table(title=f"AUROC against unique samples, mean (lowest to highest) of {len(runs)} runs left out")
    for name in ("samples", *methods):
        table.add_column(name)
    for kind, by_method in figures.items():
        cells = [f"{mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in (by_method[m] for m in methods)]
        table.add_row(kind, *cells)
    Console(width=200).print(table)
    if json:
        content: dict[str, Any] = {"runs": len(runs), "auroc": figures}
        (ROOT / json).write_text(text.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
