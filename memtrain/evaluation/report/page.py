"""The report of an evaluation: one HTML file without scripts or external resources, with its images inside.

A pure function of the output folder, so it can be made again after the template was changed: `write_report(folder)`.
It needs `results.json`, `samples.parquet` and `images/`, and shows what other stages left: `mitigation.json` with its
sheet, and the pictures in `attention/`. All text from data is escaped.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from memtrain.errors import RecordError
from memtrain.evaluation.stages.detect import section as detection_console
from memtrain.evaluation.stages.localize.section import lines
from memtrain.evaluation.stages.mitigate import section as mitigation_sheet
from memtrain.records import (
    CANARY,
    EXCLUDED,
    FLAGGED,
    HELDOUT,
    PLANTED,
    VARIED_CAPTIONS,
    VARIED_IMAGES,
)

ROWS = {PLANTED: 24, VARIED_CAPTIONS: 12, VARIED_IMAGES: 12, FLAGGED: 24, EXCLUDED: 12, CANARY: 12}
"""Prompts shown of a group, lowest ratio first."""
OTHER_ROWS = 6
"""Prompts shown of the groups not named in :data:`ROWS`."""
IMAGES_PER_ROW = 4
"""Generations shown per prompt; the best ones, if there are more seeds."""
THUMBNAIL = 192
"""Largest side of an embedded image, pixels: twice the size it is shown at. Smaller images are embedded as they are."""
COLOURS = {PLANTED: "#c2410c", HELDOUT: "#64748b"}


def write_report(folder: str | Path) -> Path:
    """Write `report.html` from the other files in `folder`.

    Args:
        folder: output folder of an evaluation.

    Returns:
        The path of the report.

    Raises:
        RecordError: if the evaluation is incomplete.
    """
    folder = Path(folder)
    for name in ("results.json", "samples.parquet"):
        if not (folder / name).is_file():
            raise RecordError(
                f"{folder / name} does not exist",
                expected="the output folder of an evaluation",
                remedy="check the path, or evaluate again",
            )
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    path = folder / "report.html"
    path.write_text(render(results, rows, folder), encoding="utf-8")
    return path


def render(results: dict[str, Any], rows: list[dict[str, Any]], folder: Path) -> str:
    """The HTML text.

    Args:
        results: content of `results.json`.
        rows: rows of `samples.parquet`.
        folder: what image paths in `rows` are relative to.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, number=_number)
    prompts = _prompts(rows)
    replication = results["replication"]
    grids = {}
    for group in replication["groups"]:
        chosen = [prompt for prompt in prompts if prompt["group"] == group]
        shown = sorted(chosen, key=lambda prompt: prompt["best"])[: ROWS.get(group, OTHER_ROWS)]
        grids[group] = {"of": len(chosen), "prompts": [_embed(prompt, folder) for prompt in shown]}
    return environment.get_template("page.html.j2").render(
        results=results,
        grids=grids,
        chart=_chart(prompts, list(replication["groups"]), replication["threshold"]),
        config=json.dumps(results["config"], indent=2, ensure_ascii=False),
        heldout=HELDOUT,
        detection=_detection(folder),
        mitigation=_mitigation(folder),
        attention=[_uri(path.read_bytes()) for path in sorted((folder / "attention").glob("*.png"))],
        localization=_localization(folder),
        templates=[name for name in (VARIED_CAPTIONS, VARIED_IMAGES) if name in replication["groups"]],
    )


def _detection(folder: Path) -> dict[str, Any] | None:
    """What the stage `detect` left in the folder about prompts of which the truth is known, or None."""
    path = folder / "detection.json"
    if not path.is_file():
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    if results["prompt_length"] is None:
        return None
    return {
        "prompts": results["prompts"],
        "headings": [heading.replace("\n", " ") for heading in detection_console.HEADINGS],
        "rows": detection_console.figure_rows(results),
        "notes": detection_console.explanation(results),
    }


def _mitigation(folder: Path) -> dict[str, Any] | None:
    """What the stage `mitigate` left in the folder, with its sheet of images, or None."""
    path, sheet = folder / "mitigation.json", folder / "mitigation.png"
    if not path.is_file() or not sheet.is_file():
        return None
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    tables = {
        name: mitigation_sheet.figure_rows(group, results["fidelity"]["measure"])
        for name, group in results["groups"].items()
    }
    return {
        **results,
        "tables": tables,
        "notes": mitigation_sheet.explanation(results),
        "sheet": _uri(sheet.read_bytes()),
    }


def _localization(folder: Path) -> dict[str, Any] | None:
    """What the stage `localize` left in the folder, if it ran."""
    path, sheet = folder / "localization.json", folder / "localization.png"
    if not path.is_file():
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    return {"results": results, "lines": lines(results), "sheet": _uri(sheet.read_bytes()) if sheet.is_file() else None}


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
        "own": _image_uri(folder / prompt["own_image"]),
        "generations": [
            {**row, "uri": _image_uri(folder / row["image"]), "elsewhere": _elsewhere(row)}
            for row in sorted(best, key=lambda row: row["seed"])
        ],
    }


def _elsewhere(row: dict[str, Any]) -> bool:
    """Whether the nearest training image is neither the own one nor a variant of it."""
    own: str = row.get("template", row["key"])
    return own != row.get("nearest_template", row["nearest_key"])


def _image_uri(path: Path) -> str:
    """A PNG file as a data URI, made smaller if it is larger than :data:`THUMBNAIL`."""
    with Image.open(path) as image:
        if max(image.size) <= THUMBNAIL:
            return _uri(path.read_bytes())
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
    return _uri(buffer.getvalue())


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


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
    axes.set_yticks(range(len(groups)), [_plain_text(group.replace("_", " ")) for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("distance to the own image / mean distance to the nearest training images (best seed)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    buffer = io.BytesIO()
    # Without the default Software entry the bytes do not depend on matplotlib's version string.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return _uri(buffer.getvalue())


def _plain_text(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g}%"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
