"""The embedded default against its baseline: what is reproduced, what that costs, and whether flags are right.

    python benchmarks/tiny.py --seeds "[0, 1, 2]" --json benchmarks/tiny.json

Trains and evaluates `configs/tiny_baseline.yaml` and `configs/tiny.yaml` once per seed (about 12 minutes a seed on two
cores) and prints one table. Runs that are finished are not repeated, and one that was interrupted continues.
"""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow.parquet as pq
from experiment import ROOT, train_and_evaluate
from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CONFIGS = ("tiny_baseline", "tiny")


def run(config: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and evaluate one configuration with one seed, unless that is done.

    Args:
        config: name of the configuration.
        seed: of everything: order, noise, planted images.
        folder: of all runs.

    Returns:
        The content of results.json.
    """
    training = ["--config", f"configs/{config}.yaml", "--seed_everything", str(seed)]
    return train_and_evaluate(
        folder / f"{config}-seed{seed}", [*training, "--data.init_args.duplicates.seed", str(seed)]
    )


def figures(results: dict[str, Any]) -> dict[str, float]:
    """The figures of one run that the table shows."""
    groups, training = results["replication"]["groups"], results["training"]
    flags = training["flags"]
    loss = next(signal for signal in training["signals"] if signal["column"] == "denoising_loss")
    entropy = max(
        (signal for signal in training["signals"] if signal["column"].startswith("attention_entropy.")),
        key=lambda signal: float(signal["auroc"]),
    )
    prompts = {
        f"AUROC of {name}": detector["comparisons"]["planted_vs_heldout"]["auroc"]
        for name, detector in results["detectors"].items()
    }
    return {
        "planted reproduced": groups["planted"]["share"],
        "unique reproduced": groups["unique"]["share"],
        "held-out loss": results["quality"]["heldout_loss"],
        "AUROC of the loss": loss["auroc"],
        "AUROC of the entropy at the best site": entropy["auroc"],
        "flag precision": flags["precision"]["share"] or 0.0,
        "flag recall": flags["recall"]["share"],
        "unique flagged": flags["false_positive_rate"]["share"],
        **prompts,
    }


def draw(folder: Path, seed: int, picture: Path) -> None:
    """Training images of planted duplicates, with generations of the baseline and of the default.

    Args:
        folder: of all runs.
        seed: of the two runs to draw.
        picture: PNG to write.
    """
    runs = {config: folder / f"{config}-seed{seed}" / "evaluation" for config in CONFIGS}
    tables = {config: pq.read_table(place / "samples.parquet").to_pylist() for config, place in runs.items()}
    keys = list(dict.fromkeys(row["key"] for row in tables[CONFIGS[0]] if row["group"] == "planted"))
    shown = 3
    figure, axes = plt.subplots(len(keys), 1 + 2 * shown, figsize=(7.6, 1.02 * len(keys)), squeeze=False)
    for line, key in zip(axes, keys, strict=True):
        own = next(row for row in tables[CONFIGS[0]] if row["key"] == key)
        line[0].imshow(Image.open(runs[CONFIGS[0]] / own["own_image"]))
        for block, config in enumerate(CONFIGS):
            rows = [row for row in tables[config] if row["key"] == key][:shown]
            for cell, row in zip(line[1 + block * shown :], rows, strict=False):
                cell.imshow(Image.open(runs[config] / row["image"]))
    for cell in axes.flatten():
        cell.set_axis_off()
    for column, title in ((0, "training image"), (2, "plain fine-tuning"), (2 + shown, "with memtrain")):
        axes[0][column].set_title(title, fontsize=10)
    figure.tight_layout(pad=0.3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=80)


def main(seeds: list[int], folder: str = "runs/benchmark", json: str | None = None, figure: str | None = None) -> None:
    """Run and print.

    Args:
        seeds: seeds to run.
        folder: where the runs are kept.
        json: also write the figures there.
        figure: also draw generations of the first seed there, as PNG.
    """
    table = Table(title="The embedded default and its baseline", title_justify="left")
    for name in ("seed", "configuration"):
        table.add_column(name)
    rows = []
    for seed in seeds:
        for config in CONFIGS:
            row = figures(run(config, seed, ROOT / folder))
            rows.append({"seed": seed, "configuration": config, **row})
    for name in list(rows[0])[2:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=200).print(table)
    if figure:
        draw(ROOT / folder, seeds[0], Path(figure))
    if json:
        Path(json).write_text(dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
