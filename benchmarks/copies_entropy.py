"""The power of the attention entropy alone for copies under other names, from records of the unprotected runs.

    python benchmarks/copies_entropy.py --json benchmarks/copies_entropy.json

Visits are made z-scores within classes of timestep and prompt length, without a base model, and averaged by picture
over each quarter of the run. One attention site carries the signal. This site and its direction are learnt from half of
the planted pictures, which stand for canaries. The figures are from the other half, averaged over draws of the halves.
The denoising loss stands beside it.
"""

from __future__ import annotations

import json as text
from pathlib import Path
from typing import Any

import torch
from copies_data import FORMS, CopiedData, make
from experiment import ROOT
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from memtrain.families.table import Families
from memtrain.functional.ranking import auroc, true_positive_rate
from memtrain.records import read_steps

BUCKETS = 8
MAXIMUM_TIMESTEP = 800
DRAWS = 50
console = Console(width=160)


def pictures(records: Path, data: CopiedData, *, quarter: int) -> tuple[list[str], Tensor, Tensor]:
    """Columns, mean z by picture `(n, columns)`, and which pictures are planted `(n,)`, in a quarter of the run."""
    steps = read_steps(records)
    last = max(steps["batch"].to_pylist()) + 1
    columns = [n for n in steps.column_names if n.startswith("attention_entropy.") or n == "denoising_loss"]
    values = torch.tensor([steps[name].to_pylist() for name in columns], dtype=torch.float64).T
    batch, timestep = (torch.tensor(steps[name].to_pylist()) for name in ("batch", "timestep"))
    length = torch.tensor([value or 0 for value in steps["prompt_length"].to_pylist()])
    inside = (batch >= last * quarter // 4) & (batch < last * (quarter + 1) // 4) & (timestep < MAXIMUM_TIMESTEP)
    inside &= ~values.isnan().any(dim=1)
    values, keys = values[inside], [key for key, kept in zip(steps["key"].to_pylist(), inside, strict=True) if kept]
    edges = length.double().quantile(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    group = timestep[inside] * BUCKETS // MAXIMUM_TIMESTEP * 3 + torch.bucketize(length[inside].double(), edges)
    z = torch.zeros_like(values)
    for one in group.unique():
        at = group == one
        z[at] = (values[at] - values[at].mean(dim=0)) / values[at].std(dim=0).clamp(min=1e-9)
    families = Families.read(data.families)
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(families.picture(key), []).append(row)
    known = {families.picture(key) for members in data.planted.values() for key in members}
    means = torch.stack([z[visits].mean(dim=0) for visits in rows.values()])
    return columns, means, torch.tensor([name in known for name in rows])


def learnt(values: Tensor, planted: Tensor) -> dict[str, float]:
    """AUROC and share found at 1 % of false positives with the column and sign that half of the planted teach."""
    positive, negative = planted.nonzero()[:, 0], (~planted).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(0)
    areas, found = [], []
    for _ in range(DRAWS):
        order = positive[torch.randperm(len(positive), generator=generator)]
        teaching, asked = order[: len(order) // 2], order[len(order) // 2 :]
        rows = torch.cat([teaching, negative])
        truth = torch.arange(len(rows)) < len(teaching)
        high = torch.stack([auroc(values[rows, column], truth) for column in range(values.shape[1])])
        column = int((high - 0.5).abs().argmax())
        sign = 1.0 if float(high[column]) > 0.5 else -1.0
        rows = torch.cat([asked, negative])
        truth = torch.arange(len(rows)) < len(asked)
        areas.append(float(auroc(sign * values[rows, column], truth)))
        found.append(float(true_positive_rate(sign * values[rows, column], truth, false_positive_rate=0.01)))
    return {"auroc": sum(areas) / DRAWS, "found_at_1_percent": sum(found) / DRAWS}


def copies_entropy(
    seed: int = 0, folder: str = "runs/copies", json: str | None = "benchmarks/copies_entropy.json"
) -> None:
    """Read the records of the unprotected runs, and show what their attention entropy tells.

    Args:
        seed: the seed of the runs.
        folder: the folder of `copies.py`.
        json: file of the figures.
    """
    place, result = (ROOT / folder).resolve(), dict[str, Any]()
    table = Table(title="Copies told by attention entropy alone, by quarter of the run", title_justify="left")
    for name in ("form", "quarter", "entropy: AUROC", "found at 1 %", "loss: AUROC", "found at 1 %"):
        table.add_column(name)
    for form in FORMS:
        records = place / f"{form}-baseline-{seed}" / "records"
        if form in ("clean", "caption") or not (records / "evidence.parquet").is_file():
            continue
        data = make(form, place / "data", seed=seed)
        result[form] = []
        for quarter in range(4):
            columns, means, planted = pictures(records, data, quarter=quarter)
            sites = [column for column, name in enumerate(columns) if name != "denoising_loss"]
            entropy = learnt(means[:, sites], planted)
            loss = learnt(means[:, [columns.index("denoising_loss")]], planted)
            each = {columns[site]: float(auroc(means[:, site], planted)) for site in sites}
            result[form].append({"entropy": entropy, "loss": loss, "sites_auroc_of_higher": each})
            cells = [f"{found[name]:.2f}" for found in (entropy, loss) for name in ("auroc", "found_at_1_percent")]
            table.add_row(form, str(quarter + 1), *cells)
    console.print(table, markup=False)
    if json is not None and result:
        (ROOT / json).write_text(text.dumps({"seed": seed, "forms": result}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(copies_entropy)
