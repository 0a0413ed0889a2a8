"""The figures of the ablation: two drawn from its file alone, one from the images of two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from mitigation_results import dose_runs, pooled_doses, summarize
from PIL import Image

# Okabe and Ito's colours, which colour-blind readers can tell apart; shapes differ too.
KINDS = {
    "baseline": ("#000000", "s", "plain fine-tuning"),
    "recommended": ("#0072B2", "D", "recommended"),
    "published": ("#D55E00", "o", "published"),
    "ours": ("#009E73", "^", "ours"),
}
DOTS_PER_INCH = 160


def draw(content: dict[str, Any], picture: Path) -> None:
    """Per row, the planted images reproduced, and held-out loss and KID without copies against the baseline.

    Args:
        content: the content of the store.
        picture: PNG to write.
    """
    lines = summarize(content)
    figure, panels = plt.subplots(
        1, 3, figsize=(9, 1.5 + 0.29 * len(lines)), sharey=True, layout="constrained", width_ratios=(1.25, 1, 1)
    )
    for height, line in enumerate(lines):
        colour, marker, _ = KINDS[line["row"].kind]
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 6, "linestyle": "none"}
        planted = line["groups"]["planted"]
        if planted is not None and planted["n"]:
            share, (low, high) = planted["share"], planted["interval"]
            _point(panels[0], height, share, low, high, scale=100, style=style)
        for panel, name, scale in ((panels[1], "loss_change", 100.0), (panels[2], "kid_without_copies_change", 1.0)):
            change = line[name]
            if change is not None:
                _point(panel, height, change["mean"], change["min"], change["max"], scale=scale, style=style)
    panels[0].set_yticks(range(len(lines)), [line["row"].name.replace("_", " ") for line in lines], fontsize=9.5)
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    panels[0].set_xlim(-4, 104)
    panels[0].set_xticks((0, 50, 100), ("0 %", "50 %", "100 %"))
    titles = (
        "planted images reproduced\n(95 % interval, seeds pooled)",
        "held-out loss against\nplain, % (seeds' range)",
        "KID without copies\nagainst plain (seeds' range)",
    )
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=9.5)
        panel.tick_params(axis="x", labelsize=9)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", color="0.92")
        panel.set_axisbelow(True)
        panel.spines[["top", "right", "left"]].set_visible(False)
    for panel in panels[1:]:
        panel.axvline(0, color="0.6", linewidth=1)
        panel.margins(x=0.12)
        panel.set_xlabel("← better", loc="left", fontsize=9, color="0.35")
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=label)
        for kind, (colour, marker, label) in KINDS.items()
        if any(line["row"].kind == kind for line in lines)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9.5, frameon=False)
    _save(figure, picture)


def _point(
    panel: Axes, height: float, value: float, low: float, high: float, *, scale: float, style: dict[str, Any]
) -> None:
    """A marker with its interval, which may not contain it by rounding."""
    ends = [[max(0.0, scale * (value - low))], [max(0.0, scale * (high - value))]]
    panel.errorbar([scale * value], [height], xerr=ends, capsize=2.5, elinewidth=1.5, **style)


def draw_doses(content: dict[str, Any], picture: Path) -> None:
    """Share of images reproduced against their repetitions per epoch, per configuration; each seed faintly.

    Args:
        content: the content of the store.
        picture: PNG to write.
    """
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    places: set[int] = set()
    doses, runs = pooled_doses(content), dose_runs(content)
    for index, (name, found) in enumerate(doses.items()):
        colour, marker, label = KINDS[name]
        # Side by side, because two shares of 0 would hide each other.
        shift = 1.05 ** (index - (len(doses) - 1) / 2)
        places |= set(found)
        for run in runs[name].values():
            own = sorted((dose["repeats"] * shift, 100 * dose["share"]) for dose in run["doses"] or ())
            axes.plot(*zip(*own, strict=True), color=colour, alpha=0.3, linewidth=1)
        seeds = len(runs[name])
        middle = [100 * pool["share"] for pool in found.values()]
        low = [max(0.0, m - 100 * pool["interval"][0]) for m, pool in zip(middle, found.values(), strict=True)]
        high = [max(0.0, 100 * pool["interval"][1] - m) for m, pool in zip(middle, found.values(), strict=True)]
        axes.errorbar(
            [repeats * shift for repeats in found],
            middle,
            [low, high],
            color=colour,
            marker=marker,
            markersize=7,
            linewidth=2,
            capsize=3,
            label=f"{label}, {f'{seeds} seeds pooled' if seeds > 1 else 'one seed'}",
        )
    axes.set_xscale("log")
    axes.set_xticks(sorted(places), [f"{place:g}" for place in sorted(places)])
    axes.set_xticks([], minor=True)
    axes.set_ylim(-4, 104)
    axes.set_yticks((0, 25, 50, 75, 100), ("0 %", "25 %", "50 %", "75 %", "100 %"))
    axes.set_xlabel("visits of an image per epoch", fontsize=11)
    axes.set_ylabel("images reproduced", fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(axis="y", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=10.5, frameon=False, loc="upper left")
    _save(figure, picture)


def draw_pictures(folder: Path, seed: int, picture: Path) -> None:
    """Training images that were planted, with what the baseline and the recommended run make of their captions.

    Args:
        folder: the folder of the benchmark.
        seed: the seed of the two runs.
        picture: PNG to write.
    """
    columns = {"plain fine-tuning": "baseline", "with memtrain": "recommended"}
    runs = {title: folder / f"{row}-seed{seed}" / "evaluation" for title, row in columns.items()}
    tables = {title: pq.read_table(place / "samples.parquet").to_pylist() for title, place in runs.items()}
    first = next(iter(tables))
    keys = list(dict.fromkeys(row["key"] for row in tables[first] if row["group"] == "planted"))
    shown = 3
    figure, axes = plt.subplots(len(keys), 1 + 2 * shown, figsize=(7.6, 1.02 * len(keys)), squeeze=False)
    for line, key in zip(axes, keys, strict=True):
        own = next(row for row in tables[first] if row["key"] == key)
        line[0].imshow(Image.open(runs[first] / own["own_image"]))
        for block, (title, rows) in enumerate(tables.items()):
            images = [row["image"] for row in rows if row["key"] == key][:shown]
            for cell, image in zip(line[1 + block * shown :], images, strict=False):
                cell.imshow(Image.open(runs[title] / image))
    for cell in axes.flatten():
        cell.set_axis_off()
    for column, title in zip((0, 2, 2 + shown), ("training image", *columns), strict=True):
        axes[0][column].set_title(title, fontsize=10)
    figure.tight_layout(pad=0.3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=80, metadata={"Software": None})
    plt.close(figure)


def _save(figure: Any, picture: Path) -> None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    # Without the default Software entry the bytes do not depend on matplotlib's version string.
    figure.savefig(picture, dpi=DOTS_PER_INCH, metadata={"Software": None})
    plt.close(figure)
