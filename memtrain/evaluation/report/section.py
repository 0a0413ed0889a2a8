"""What a stage says in the report: a title and HTML, from result files alone.

A section is put together from text, tables and pictures, or rendered from a template of the stage. All text from data
is escaped; there are no scripts, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

THUMBNAIL = 192
"""Largest side of an embedded image, pixels: twice the size it is shown at. Smaller images are embedded as they are."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Attributes:
        title: heading; empty for what stands before all headings.
        body: HTML.
        place: sections are shown in this order.
        verdict: the page's headline, `level` and `text`, if the section has one.
        limits: what cannot be concluded; listed at the end of the page.
        facts: name and value of what is listed under "Run".
        config: where the model comes from, as JSON holds it.
    """

    title: str
    body: Markup
    place: int = 50
    verdict: Mapping[str, str] | None = None
    limits: Sequence[str | Markup] = ()
    facts: Sequence[tuple[str, str]] = ()
    config: Mapping[str, Any] | None = None


def results_of(folder: Path, name: str) -> dict[str, Any] | None:
    """The content of a results file, None if the stage has not run."""
    path = folder / name
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def made(results: Mapping[str, Any], stage: str) -> list[tuple[str, str]]:
    """When and of what a stage made its results, how images were sampled and with which versions, as facts.

    Args:
        results: content of the stage's JSON file, with what every one holds: `created` and `versions`.
        stage: its name.
    """
    parts = [results["created"], results.get("model")]
    if sampling := results.get("sampling"):
        seeds = ", ".join(map(str, sampling["seeds"]))
        parts.append(f"{sampling['steps']} steps, guidance {sampling['guidance_scale']}, seeds {seeds}")
    parts.append(", ".join(f"{name} {version}" for name, version in results["versions"].items()))
    return [(stage, "; ".join(part for part in parts if part))]


def paragraph(text: str | Markup) -> Markup:
    """Text as a paragraph."""
    return Markup("<p>{}</p>\n").format(text)


def heading(text: str) -> Markup:
    """A heading within a section."""
    return Markup("<h3>{}</h3>\n").format(text)


def notes(lines: Sequence[str]) -> Markup:
    """Sentences in small print."""
    return Markup('<p class="soft">{}</p>\n').format(" ".join(lines))


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """A table whose first column is text and whose other columns are figures."""
    head, figures = Markup("<th>{}</th>"), Markup('<th class="n">{}</th>')
    lines = [_row([(figures if column else head).format(str(text)) for column, text in enumerate(headings)])]
    first, others = Markup("<td>{}</td>"), Markup('<td class="n">{}</td>')
    for row in rows:
        lines.append(_row([(others if column else first).format(str(text)) for column, text in enumerate(row)]))
    return Markup('<div class="scroll"><table>\n{}</table></div>\n').format(Markup("").join(lines))


def _row(cells: Sequence[Markup]) -> Markup:
    return Markup("<tr>{}</tr>\n").format(Markup("").join(cells))


def picture(path: Path, *, alt: str) -> Markup:
    """A PNG file, inside the page; nothing if it does not exist."""
    if not path.is_file():
        return Markup("")
    return Markup('<img class="chart" src="{}" alt="{}">\n').format(png_uri(path.read_bytes()), alt)


def png_uri(png: bytes) -> str:
    """The bytes of a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def thumbnail_uri(path: Path) -> str:
    """A PNG file as a data URI, made smaller if it is larger than :data:`THUMBNAIL`."""
    with Image.open(path) as image:
        if max(image.size) <= THUMBNAIL:
            return png_uri(path.read_bytes())
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
    return png_uri(buffer.getvalue())


def from_template(path: Path, **context: Any) -> Markup:
    """HTML from a Jinja template of a stage; the filters are `percent`, `number` and `capitalised`.

    Args:
        path: of the template.
        context: its variables; a missing one is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, number=number, capitalised=capitalised)
    return Markup(environment.get_template(path.name).render(**context))  # noqa: S704 (autoescape is on)


def percent(share: float | None) -> str:
    """`12.5%`, or a dash for None."""
    return "–" if share is None else f"{100 * share:.3g}%"


def number(value: float | None, digits: int = 3) -> str:
    """With so many digits after the point, or a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def capitalised(text: str) -> str:
    """With a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def joined(parts: Sequence[Markup]) -> Markup:
    """Parts one after the other."""
    return Markup("").join(escape(part) for part in parts)
