"""The effect of masking on the screen: the figures as a table, and their meaning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from memtrain.evaluation.stages.localize.conditions import MASKED, SEARCHED, UNION, UNMASKED

ORDER = (UNMASKED, MASKED, UNION, UNMASKED + SEARCHED, MASKED + SEARCHED, UNION + SEARCHED)


def lines(results: Mapping[str, Any], *, intervals: bool = True) -> list[dict[str, str]]:
    """The table of conditions as text, a line per condition and group; what was not measured is a dash.

    Args:
        results: content of `localization.json`.
        intervals: whether each share has its interval.
    """
    found = []
    order = [*ORDER[:3], *(results.get("baselines") or {}).get("names", []), *ORDER[3:]]
    for name in order:
        for group, figures in results["conditions"].get(name, {}).items():
            losses = figures.get("search_loss")
            found.append(
                {
                    "condition": name,
                    "prompts": f"{group} ({figures['n']})",
                    "reproduced": _share(figures.get("reproduced"), interval=intervals),
                    "below every control": _share(figures.get("below_every_control"), interval=intervals),
                    "best ratio": f"{figures['best_ratio']['median']:.2f}" if "best_ratio" in figures else "–",
                    "diversity": _mean(figures.get("diversity")),
                    "fidelity": _mean(figures.get("fidelity")),
                    "search loss": "–" if losses is None else f"{losses['first']:.3f} to {losses['last']:.3f}",
                }
            )
    return found


def print_localization(results: Mapping[str, Any], folder: Path, *, console: Console | None = None) -> None:
    """Print what was found, what masking it changed, and what that means.

    Args:
        results: content of `localization.json`.
        folder: where the files are.
        console: where to print; default the standard output.
    """
    console = console or Console()
    located, neurons = results["located"], results["neurons"]
    console.print(
        f"Prompts with neurons: {_share(located['asked'])} of those asked about, {_share(located['false_alarms'])} of "
        f"the controls (false alarms).",
        markup=False,
        soft_wrap=True,
    )
    if neurons["per_prompt"] is not None:
        each = neurons["per_prompt"]
        layers = ", ".join(f"{short_site(site)} {mean:.1f}" for site, mean in neurons["per_layer"].items())
        console.print(
            f"Neurons per prompt: {each['median']:.0f} (median; {each['min']:.0f} to {each['max']:.0f}), "
            f"{neurons['all_masks']} in all masks together. Per layer on average: {layers}.",
            markup=False,
            soft_wrap=True,
        )
    table = Table(title="Neuron masking (trigger suppression)", title_justify="left")
    # In a terminal of 80 columns; intervals and what is left out are in the report and in localization.json.
    kept = ("condition", "prompts", "reproduced", "best ratio", "diversity", "fidelity")
    shown = [{name: line[name] for name in kept} for line in lines(results, intervals=False)]
    for column in shown[0]:
        table.add_column(column, justify="left" if column in ("condition", "prompts") else "right")
    for line in shown:
        table.add_row(*line.values())
    console.print(table, markup=False)
    loss = results["heldout_loss"]
    if loss is not None:
        ends = "" if loss["interval"] is None else " ({:+.2%} to {:+.2%})".format(*loss["interval"])
        console.print(
            f"Held-out loss with all masks: {loss['change']:+.2%}{ends}, {loss['n']} image{'s' * (loss['n'] > 1)}.",
            markup=False,
        )
    console.print(results["verdict"]["text"], markup=False, soft_wrap=True)
    files = ("localization.png", "localization.parquet", "masks.safetensors", "localization.json")
    names = ("Images", "Per prompt", "Masks", "Figures")
    console.print(
        "   ".join(f"{name}: {folder / file}" for name, file in zip(names, files, strict=True)),
        markup=False,
        soft_wrap=True,
    )


def short_site(site: str) -> str:
    """`down_blocks.0.attentions.1.transformer_blocks.0.attn2` to `down 0.1`."""
    parts = [part for part in site.split(".") if part not in ("attentions", "transformer_blocks", "attn2")]
    return f"{parts[0].removesuffix('_blocks').removesuffix('_block')} {'.'.join(parts[1:-1])}".strip()


def _share(found: Mapping[str, Any] | None, *, interval: bool = True) -> str:
    if found is None or not found["n"]:
        return "–"
    low, high = found["interval"]
    return f"{found['k']} of {found['n']}" + (f" ({low:.0%} to {high:.0%})" if interval else "")


def _mean(found: Mapping[str, Any] | None) -> str:
    return "–" if found is None or found["mean"] is None else f"{found['mean']:.3f}"
