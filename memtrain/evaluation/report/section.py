"""Sections of the report: each stage makes a title and HTML from its result files alone.

A section consists of text, tables and pictures, or is rendered from a template of the stage. All text from data is
escaped. A section has no scripts, and loads nothing from other places.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from memtrain.evaluation.report.shares import words
from memtrain.files.text import read_json_object

THUMBNAIL = 192
"""Largest side of an embedded image, in pixels: twice the shown size. Smaller images are embedded unchanged."""
BLOCK = 16
"""Largest side, in pixels, of an image that shows only its average colour."""
_ONE_COLOUR: ContextVar[bool] = ContextVar("one_colour", default=False)


@dataclass(frozen=True)
class KeyFigure:
    """A figure on the first screen of the page.

    Attributes:
        label: the name of the figure.
        value: the figure as text.
        note: the interval of the figure, or its source.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Attributes:
        title: the heading; empty for a section that stands before all headings.
        body: the HTML of the section.
        place: the sort key of the section; the page shows sections in ascending order.
        verdict: the page's answer, if the section has one. `level` is `reproduces`, `unjudged`, `inconclusive`, `none`
            or `plain`; `text` is one sentence. `word` (optional) stands above `text`, and `more` (optional) below.
        rests_on: sentences on the basis of the answer.
        cannot_say: sentences on the limits of the answer.
        figures: the figures that a reader looks for first.
        subject: the model that the page describes.
        folded: whether the section is closed until the reader opens it; for rows of pictures.
        limits: sentences on the limits of the evaluation, listed at the end of the page.
        facts: pairs of name and value, listed under "About this run".
        config: the settings and origin of the model, as the JSON file holds them.
    """

    title: str
    body: Markup
    place: int = 50
    verdict: Mapping[str, Any] | None = None
    rests_on: Sequence[str] = ()
    cannot_say: Sequence[str] = ()
    figures: Sequence[KeyFigure] = ()
    subject: str = ""
    folded: bool = False
    limits: Sequence[str | Markup] = ()
    facts: Sequence[tuple[str, str]] = ()
    config: Mapping[str, Any] | None = None


def results_of(folder: Path, name: str) -> dict[str, Any] | None:
    """Read a results file; None if the stage has not run.

    Raises:
        DataError: if the file is cut off, or holds something else.
    """
    path = folder / name
    if not path.is_file():
        return None
    return read_json_object(path, what="the results of a stage", remedy=f"run the stage again, or remove {path}")


def made(results: Mapping[str, Any], stage: str) -> list[tuple[str, str]]:
    """Facts about the results of a stage: time, model, sampling settings and versions of libraries.

    Args:
        results: the content of the stage's JSON file, which has at least `created` and `versions`.
        stage: the name of the stage.
    """
    parts = [results["created"], results.get("model")]
    if sampling := results.get("sampling"):
        seeds = ", ".join(map(str, sampling["seeds"]))
        parts.append(f"{sampling['steps']} steps, guidance {sampling['guidance_scale']}, seeds {seeds}")
    parts.append(", ".join(f"{name} {version}" for name, version in results["versions"].items()))
    return [(stage, "; ".join(part for part in parts if part))]


def paragraph(text: str | Markup) -> Markup:
    """Wrap text in a paragraph."""
    return Markup("<p>{}</p>\n").format(text)


def heading(text: str) -> Markup:
    """Wrap text in a heading within a section."""
    return Markup("<h3>{}</h3>\n").format(text)


def notes(lines: Sequence[str]) -> Markup:
    """Wrap sentences in a paragraph of small print."""
    return Markup('<p class="soft">{}</p>\n').format(" ".join(lines))


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> Markup:
    """Make a table whose first column is text and whose other columns are figures.

    Args:
        headings: the headings of the columns.
        rows: the rows; each has as many cells as there are headings, and its first cell names the row.
        caption: the caption of the table. Screen readers say it first, and it names the region that scrolls on a narrow
            screen.
    """
    head = Markup('<th scope="col">{}</th>'), Markup('<th scope="col" class="n">{}</th>')
    cell = Markup('<th scope="row">{}</th>'), Markup('<td class="n">{}</td>')
    title = _row([head[column > 0].format(_cell(text)) for column, text in enumerate(headings)])
    lines = [_row([cell[column > 0].format(_cell(text)) for column, text in enumerate(row)]) for row in rows]
    return scrolled(
        Markup("<table>\n{}<thead>\n{}</thead>\n<tbody>\n{}</tbody>\n</table>").format(
            Markup("<caption>{}</caption>\n").format(caption) if caption else "", title, Markup("").join(lines)
        ),
        name=caption or str(headings[0]) or "table",
    )


def scrolled(inside: Markup, *, name: str) -> Markup:
    """Wrap HTML that may be wider than the screen in a scrolling region that the keyboard can reach."""
    region = Markup('<div class="scroll" tabindex="0" role="group" aria-label="{}">{}</div>\n')
    return region.format(name, inside)


def _cell(value: object) -> object:
    return value if isinstance(value, Markup) else str(value)


def _row(cells: Sequence[Markup]) -> Markup:
    return Markup("<tr>{}</tr>\n").format(Markup("").join(cells))


def bullets(sentences: Sequence[str | Markup]) -> Markup:
    """Make a bulleted list."""
    lines = [Markup("<li>{}</li>\n").format(sentence) for sentence in sentences]
    return Markup("<ul>\n{}</ul>\n").format(Markup("").join(lines))


def folded(title: str, body: Markup) -> Markup:
    """Wrap HTML in a block that is closed until the reader opens it."""
    return Markup('<details class="part"><summary>{}</summary>\n{}</details>\n').format(title, body)


def picture(path: Path, *, alt: str) -> Markup:
    """Embed a PNG file in the page; an empty string if the file does not exist."""
    if not path.is_file():
        return Markup("")
    return Markup('<img class="chart" src="{}" alt="{}">\n').format(png_uri(path.read_bytes()), alt)


def png_uri(png: bytes) -> str:
    """Encode a PNG file as a data URI; within :func:`one_colour`, encode a block of its average colour instead."""
    if _ONE_COLOUR.get():
        png = _block(png)
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@contextmanager
def one_colour() -> Iterator[None]:
    """Replace every image that goes into a page by a block of its average colour, while this context lasts."""
    before = _ONE_COLOUR.set(True)
    try:
        yield
    finally:
        _ONE_COLOUR.reset(before)


def _block(png: bytes) -> bytes:
    """Make a small PNG in the average colour and the proportions of another PNG."""
    with Image.open(io.BytesIO(png)) as image:
        width, height = image.size
        colour = image.convert("RGB").resize((1, 1), Image.Resampling.BOX)
    scale = BLOCK / max(width, height)
    block = colour.resize((max(1, round(width * scale)), max(1, round(height * scale))))
    buffer = io.BytesIO()
    block.save(buffer, "PNG")
    return buffer.getvalue()


def thumbnail_uri(path: Path) -> str:
    """Encode a PNG file as a data URI, scaled down if it is larger than :data:`THUMBNAIL`."""
    with Image.open(path) as image:
        if max(image.size) <= THUMBNAIL:
            return png_uri(path.read_bytes())
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
    return png_uri(buffer.getvalue())


def from_template(path: Path, **context: Any) -> Markup:
    """Render a Jinja template of a stage, which may import `macros.html.j2` of this folder.

    The filters are `percent`, `number`, `capitalised` and `words`.

    Args:
        path: the template file.
        context: the variables of the template; a missing variable is an error.
    """
    environment = Environment(
        loader=FileSystemLoader([path.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, number=number, capitalised=capitalised, words=words)
    return Markup(environment.get_template(path.name).render(**context))  # noqa: S704 (autoescape is on)


def percent(share: float | None) -> str:
    """Format a share as `12.5%`; a dash for None."""
    return "–" if share is None else f"{100 * share:.3g}%"


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with `digits` digits after the point; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def capitalised(text: str) -> str:
    """Make the first letter a capital, and keep the rest."""
    return text[:1].upper() + text[1:]


def joined(parts: Sequence[Markup]) -> Markup:
    """Join parts of HTML in their order."""
    return Markup("").join(escape(part) for part in parts)
