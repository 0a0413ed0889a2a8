"""The figures of docs/how_it_decides.md, from closed forms and from the JSON files in this folder.

    python benchmarks/figures.py

writes five PNG files to `docs/figures/`. Nothing is measured: `scale.png`, `threshold.png` and `chance.png` show the
formulas that memtrain computes with, `rates.png` shows `rates.json` and `power.png` shows `copy_measures.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from memtrain.evaluation.stages.measure.chance import by_chance, let_through  # noqa: E402
from memtrain.evidence.promise import Promise, promise  # noqa: E402
from memtrain.evidence.running_means import dilutions  # noqa: E402

FOLDER = HERE.parent / "docs" / "figures"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""
MARKERS = ("o", "s", "^", "D")
WINDOW, VISITS = 12, range(1, 31)


def scale(panel: Axes) -> None:
    """Standard deviation of a sample's mean z over its visits, when nothing is memorized."""
    table = dilutions(WINDOW)
    for colour, marker, share in zip(COLOURS, MARKERS, (0.0, 0.1, 0.3), strict=False):
        spread = [(share + (1 - share) * float(table[min(m, len(table) - 1)])) ** 0.5 for m in VISITS]
        panel.plot(list(VISITS), spread, color=colour, marker=marker, markersize=4, label=f"ρ = {share:g}")
    panel.axvline(6, color="#888888", linestyle=":", label="earliest flag (minimum_visits: 6)")
    panel.set(xlabel="counted visits m", ylabel="standard deviation of the mean z", ylim=(0, 1.05))
    panel.legend(frameon=False)


def threshold(panel: Axes) -> None:
    """The rate that n held-out pictures promise of an asked 1 %, with and without the assumption on the tail."""
    counts = [*range(8, 99), *range(99, 1001, 4)]
    found: list[Promise] = [one for n in counts if (one := promise(n, 0.01)) is not None]
    lines: dict[str, list[float | None]] = {
        "on average, as promised": [one.rate for one in found],
        "with 95 % confidence, as promised": [one.bound for one in found],
        "on average, without the assumption": [one.free_rate for one in found],
        "with 95 % confidence, without it": [one.free_bound for one in found],
    }
    for (name, values), colour, style in zip(lines.items(), COLOURS, ("-", "-", "--", "--"), strict=True):
        panel.plot(counts, [100 * (value or 0) for value in values], color=colour, linestyle=style, label=name)
    panel.axvline(99, color="#888888", linestyle=":")
    panel.annotate("99: no assumption needed", (99, 25), xytext=(6, 0), textcoords="offset points", fontsize=8)
    panel.set(xscale="log", yscale="log", xlabel="held-out pictures", ylabel="false-positive rate, %")
    panel.set_xticks((8, 30, 99, 300, 1000), ("8", "30", "99", "300", "1,000"))
    panel.set_yticks((0.5, 1, 3, 10, 30), ("0.5", "1", "3", "10", "30"))
    panel.minorticks_off()
    panel.legend(frameon=False, fontsize=8)


def rates(panel: Axes, rows: list[dict[str, Any]]) -> None:
    """Share of ordinary samples flagged in simulation, in the worst kind of data, against the asked rate."""
    monitor = [row for row in rows if row["group"] in ("monitor", "bulk") and row["name"] in ("0.001", "0.01", "0.05")]
    counts = sorted({row["count"] for row in monitor})
    for colour, marker, name in zip(COLOURS, MARKERS, ("0.001", "0.01", "0.05"), strict=False):
        worst = [_worst(monitor, count, name) for count in counts]
        panel.plot(counts, [100 * mean for mean, _ in worst], color=colour, marker=marker, linestyle="none")
        panel.plot(counts, [100 * run for _, run in worst], color=colour, marker="_", markersize=12, linestyle="none")
        panel.axhline(100 * float(name), color=colour, linewidth=0.8, label=f"asked: {100 * float(name):g} %")
    panel.set_xscale("symlog", linthresh=8)
    panel.set_yscale("symlog", linthresh=0.1)
    panel.set_xticks(counts, ["bulk" if count == 0 else f"{count:,}" for count in counts])
    panel.set_yticks((0, 0.1, 1, 5, 15), ("0", "0.1", "1", "5", "15"))
    panel.minorticks_off()
    panel.set(xlabel="held-out pictures", ylabel="ordinary samples flagged, %", ylim=(-0.02, 25))
    panel.legend(frameon=False, fontsize=8, loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.12))


def _worst(rows: list[dict[str, Any]], count: int, name: str) -> tuple[float, float]:
    """Mean over runs in the worst kind of data, and the worst run of that kind."""
    return max((row["mean"], row["worst"]) for row in rows if row["count"] == count and row["name"] == name)


def chance(panel: Axes) -> None:
    """Probability that chance alone brings back k or more of 40 pictures, by number of held-out prompts."""
    for colour, marker, heldout in zip(COLOURS, MARKERS, (10, 30, 100, 300), strict=True):
        rate = max(0.01, 1 / (heldout + 1))
        allowed = let_through(rate, heldout)
        values = [by_chance(k, 40, allowed=allowed, heldout=heldout) for k in range(1, 13)]
        panel.plot(range(1, 13), values, color=colour, marker=marker, markersize=4, label=f"{heldout} held-out prompts")
    panel.axhline(0.05, color="#888888", linestyle=":", label="5 %")
    panel.set(yscale="log", ylim=(1e-6, 1.2), xlabel="pictures beyond the threshold, of 40", ylabel="probability")
    panel.set_xticks(range(1, 13))
    panel.legend(frameon=False, fontsize=8)


def power(panel: Axes, data: dict[str, Any]) -> None:
    """Share of light edits that each measure of copying finds, clip art and photographs."""
    names = [name for name in data["clip art, 64 pixels"]["questions"]["own"] if name != "together"]
    places = list(range(len(names)))
    for shift, colour, kind in zip((-0.2, 0.2), COLOURS, data, strict=False):
        own = data[kind]["questions"]["own"]
        shares = [100 * own[name]["recall"]["light edits"]["share"] for name in names]
        panel.barh([place + shift for place in places], shares, height=0.36, color=colour, label=kind)
    panel.set_yticks(places, names)
    panel.invert_yaxis()
    panel.axvline(95, color="#888888", linestyle=":", label="mark: 95 %")
    panel.set(xlabel="lightly edited copies found, %", xlim=(0, 101))
    panel.legend(frameon=False, fontsize=8, loc="upper center", ncols=3, bbox_to_anchor=(0.45, 1.12))


def main() -> None:
    """Draw all five."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = json.loads((HERE / "rates.json").read_text(encoding="utf-8"))["rows"]
    copies = json.loads((HERE / "copy_measures.json").read_text(encoding="utf-8"))["data"]
    drawn = {
        "scale": scale,
        "threshold": threshold,
        "rates": lambda panel: rates(panel, rows),
        "chance": chance,
        "power": lambda panel: power(panel, copies),
    }
    for name, draw in drawn.items():
        figure, panel = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        draw(panel)
        panel.spines[["top", "right"]].set_visible(False)
        figure.savefig(FOLDER / f"{name}.png", dpi=130, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
