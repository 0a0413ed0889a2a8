"""What `measure` says in the report: from `results.json`, `samples.parquet` and the images beside them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from memtrain.errors import RecordError
from memtrain.evaluation.report.figure_text import figure_text
from memtrain.evaluation.report.section import (
    Section,
    from_template,
    joined,
    made,
    paragraph,
    percent,
    png_uri,
    results_of,
    table,
    thumbnail_uri,
)
from memtrain.evaluation.stages.network_figures import distance, network_rows
from memtrain.records import (
    CANARY,
    EXCLUDED,
    FLAGGED,
    HELDOUT,
    PLANTED,
    REPEATED,
    SHARED_CAPTION,
    VARIED_CAPTIONS,
    VARIED_IMAGES,
)

ROWS = {
    PLANTED: 24,
    REPEATED: 24,
    SHARED_CAPTION: 12,
    VARIED_CAPTIONS: 12,
    VARIED_IMAGES: 12,
    FLAGGED: 24,
    EXCLUDED: 12,
    CANARY: 12,
}
"""Prompts shown of a group, lowest ratio first."""
OTHER_ROWS = 6
"""Prompts shown of the groups not named in :data:`ROWS`."""
IMAGES_PER_ROW = 4
"""Generations shown per prompt; the best ones, if there are more seeds."""
FAMILIES = 12
"""Pictures of several files shown by themselves."""
COLOURS = {PLANTED: "#c2410c", REPEATED: "#c2410c", HELDOUT: "#64748b"}


def sections(folder: Path) -> list[Section]:
    """One section if the stage has run; its template has the headings.

    Args:
        folder: of the results.

    Raises:
        RecordError: if the table of samples is missing.
    """
    results = results_of(folder, "results.json")
    if results is None:
        return []
    samples = folder / "samples.parquet"
    if not samples.is_file():
        raise RecordError(
            f"{samples} does not exist",
            expected="the output folder of an evaluation",
            remedy="check the path, or evaluate again",
        )
    prompts = _prompts(pq.read_table(samples).to_pylist())
    replication = results["replication"]
    grids = {}
    for group in replication["groups"]:
        chosen = [prompt for prompt in prompts if prompt["group"] == group]
        shown = sorted(chosen, key=lambda prompt: prompt["best"])[: ROWS.get(group, OTHER_ROWS)]
        grids[group] = {"of": len(chosen), "prompts": [_embed(prompt, folder) for prompt in shown]}
    body = from_template(
        Path(__file__).with_name("section.html.j2"),
        results=results,
        grids=grids,
        family_grid=_family_grid(results, prompts, folder),
        chart=_chart(prompts, list(replication["groups"]), replication["threshold"]),
        heldout=HELDOUT,
        templates=[name for name in (VARIED_CAPTIONS, VARIED_IMAGES) if name in replication["groups"]],
    )
    return [
        Section(
            title="",
            body=joined([body, _networks(results)]),
            place=0,
            verdict=results["verdict"],
            limits=_limits(len(results["sampling"]["seeds"])),
            facts=_facts(results),
            config=results["config"],
        )
    ]


def _networks(results: Mapping[str, Any]) -> Markup:
    """The figures that need weight files, if any were given."""
    found = results.get("networks")
    if not found:
        return Markup("")
    rows = [
        (group.replace("_", " "), *row) for group, figures in found["groups"].items() for row in network_rows(figures)
    ]
    rows += [("held-out prompts", name, distance(found[name]), "") for name in ("FID", "CLIP_FID") if name in found]
    return joined(
        [
            Markup("<h2>Figures of networks</h2>\n"),
            paragraph("Measured with the weight files that were named; comparable within one paper's convention only."),
            table(("prompts", "figure", "value", "n"), rows),
        ]
    )


def _limits(seeds: int) -> list[str | Markup]:
    return [
        f"Only the prompts above were sampled, with {seeds} seeds each. A training image that was not asked for, or "
        "that appears for another seed, guidance scale or wording, is not counted.",
        "Pixel distance sees near-exact copies. Copies that are shifted, mirrored, recoloured or partial, and copied "
        "style, pass unseen.",
        Markup(
            "A generation that copies a training image of <em>another</em> caption is not counted as reproduced (see "
            "↗, and <code>nearest_key</code> in <code>samples.parquet</code>)."
        ),
        "A ratio just below the threshold means closer than held-out prompts come, which need not be a visible copy: "
        "look at the images.",
        "The threshold holds for prompts like the held-out ones. Training captions that are longer, rarer or otherwise "
        "different are not covered.",
        "That nothing was reproduced does not mean that nothing was learned by heart: an adversarial prompt or "
        "embedding may still bring it back.",
    ]


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    sampling, statistics = results["sampling"], results["statistics"]
    return [
        *made(results, "measure"),
        ("sampling", f"{sampling['images']} images, with {sampling['scheduler']}"),
        (
            "statistics",
            f"{percent(statistics['level'])} intervals: Wilson for shares, bootstrap for AUROC "
            f"({statistics['resamples']} resamples, seed {statistics['seed']})",
        ),
        ("schema", str(results["schema_version"])),
    ]


def _prompts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows gathered by prompt, with the lowest ratio as `best` and the generations in the order of seeds."""
    prompts: dict[str, dict[str, Any]] = {}
    for row in rows:
        prompt = prompts.setdefault(row["key"], {**row, "generations": []})
        prompt["generations"].append(row)
    for prompt in prompts.values():
        prompt["best"] = min(row["ratio"] for row in prompt["generations"])
    return list(prompts.values())


def _embed(prompt: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the template needs of a prompt, with images as data URIs."""
    best = sorted(prompt["generations"], key=lambda row: row["ratio"])[:IMAGES_PER_ROW]
    return {
        "key": prompt["key"],
        "caption": prompt["caption"],
        "flagged": prompt.get("training.flagged"),
        "first_flagged_step": prompt.get("training.first_flagged_step"),
        "own": thumbnail_uri(folder / prompt["own_image"]),
        "generations": [
            {**row, "uri": thumbnail_uri(folder / row["image"]), "elsewhere": _elsewhere(row)}
            for row in sorted(best, key=lambda row: row["seed"])
        ],
    }


def _family_grid(results: Mapping[str, Any], prompts: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The first families of the results, each with its own image and the generation that is nearest to it."""
    found = []
    for one in results.get("families", {}).get("asked", [])[:FAMILIES]:
        column = "caption_family" if one["group"] == SHARED_CAPTION else "picture_family"
        members = [prompt for prompt in prompts if (prompt["group"], prompt[column]) == (one["group"], one["name"])]
        best = min((row for prompt in members for row in prompt["generations"]), key=lambda row: float(row["ratio"]))
        images = {"own": thumbnail_uri(folder / best["own_image"]), "uri": thumbnail_uri(folder / best["image"])}
        found.append({**one, **images, "caption": best["caption"]})
    return found


def _elsewhere(row: dict[str, Any]) -> bool:
    """Whether the nearest training image is neither the own picture nor one under the same caption."""
    if "picture_family" not in row:
        own: str = row.get("template", row["key"])
        return own != row.get("nearest_template", row["nearest_key"])
    pictures, captions = ("picture_family", "nearest_picture_family"), ("caption_family", "nearest_caption_family")
    return all(row[own] != row[nearest] for own, nearest in (pictures, captions))


def _chart(prompts: list[dict[str, Any]], groups: list[str], threshold: float) -> str:
    """Lowest ratio of every prompt, one line of dots per group, with the threshold; a PNG data URI."""
    # A Figure of its own instead of pyplot, which keeps global state and may look for a display.
    figure = Figure(figsize=(8, 0.8 + 0.62 * len(groups)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    spread = np.random.default_rng(0)
    for line, group in enumerate(groups):
        best = [prompt["best"] for prompt in prompts if prompt["group"] == group]
        heights = line + spread.uniform(-0.25, 0.25, len(best))
        axes.scatter(best, heights, s=22, color=COLOURS.get(group, "#0f766e"), alpha=0.65, linewidths=0)
    axes.axvline(threshold, color="#111827", linewidth=1, linestyle="--")
    axes.annotate(
        f"threshold {threshold:.2f}",
        (threshold, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )
    axes.set_yticks(range(len(groups)), [figure_text(group.replace("_", " ")) for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("distance to the own image / mean distance to the nearest training images (best seed)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    buffer = io.BytesIO()
    # Without the default Software entry the bytes do not depend on matplotlib's version string.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return png_uri(buffer.getvalue())
