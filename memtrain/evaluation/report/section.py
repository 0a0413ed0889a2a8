"""What a stage says in the report: a title and HTML, from result files alone.

A section is put together from text, tables and pictures, or rendered from a template of the stage. All text from data
is escaped; there are no scripts, and nothing is loaded from elsewhere.
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
"""Largest side of an embedded image, pixels: twice the size it is shown at. Smaller images are embedded as they are."""
BLOCK = 16
"""Largest side of an image of which only the colour is shown."""
_ONE_COLOUR: ContextVar[bool] = ContextVar("one_colour", default=False)


@dataclass(frozen=True)
class KeyFigure:
    """A figure of the first screen.

    Attributes:
        label: what it is.
        value: as it is read.
        note: its interval, or what it is of.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Attributes:
        title: heading; empty for what stands before all headings.
        body: HTML.
        place: sections are shown in this order.
        verdict: the page's answer, if the section has one: `level` (`reproduces`, `unjudged`, `inconclusive`, `none` or
            `plain`), `text` (one sentence), and if there is more to say `word` (above it) and `more` (below).
        rests_on: sentences, what the answer rests on.
        cannot_say: sentences, what it cannot say.
        figures: the figures that a reader looks for first.
        subject: the model that the page is about.
        folded: shown when the reader opens it; for rows of pictures.
        limits: what cannot be concluded; listed at the end of the page.
        facts: name and value of what is listed under "Run".
        config: where the model comes from, as JSON holds it.
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
    """The content of a results file, None if the stage has not run.

    Raises:
        DataError: if it is cut off, or holds something else.
    """
    path = folder / name
    if not path.is_file():
        return None
    return read_json_object(path, what="the results of a stage", remedy=f"run the stage again, or remove {path}")


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


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> Markup:
    """A table whose first column is text and whose other columns are figures.

    Args:
        headings: of the columns.
        rows: as many cells as headings; the first names the row.
        caption: what the table shows; read out before it, and the name of the region that scrolls on a narrow screen.
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
    """What may be wider than the screen, in a region of its own that the keyboard reaches."""
    region = Markup('<div class="scroll" tabindex="0" role="group" aria-label="{}">{}</div>\n')
    return region.format(name, inside)


def _cell(value: object) -> object:
    return value if isinstance(value, Markup) else str(value)


def _row(cells: Sequence[Markup]) -> Markup:
    return Markup("<tr>{}</tr>\n").format(Markup("").join(cells))


def bullets(sentences: Sequence[str | Markup]) -> Markup:
    """A list."""
    lines = [Markup("<li>{}</li>\n").format(sentence) for sentence in sentences]
    return Markup("<ul>\n{}</ul>\n").format(Markup("").join(lines))


def folded(title: str, body: Markup) -> Markup:
    """What the reader opens if it is wanted."""
    return Markup('<details class="part"><summary>{}</summary>\n{}</details>\n').format(title, body)


def picture(path: Path, *, alt: str) -> Markup:
    """A PNG file, inside the page; nothing if it does not exist."""
    if not path.is_file():
        return Markup("")
    return Markup('<img class="chart" src="{}" alt="{}">\n').format(png_uri(path.read_bytes()), alt)


def png_uri(png: bytes) -> str:
    """The bytes of a PNG file as a data URI; within :func:`one_colour`, of a block instead."""
    if _ONE_COLOUR.get():
        png = _block(png)
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


@contextmanager
def one_colour() -> Iterator[None]:
    """While this lasts, every image that goes into a page becomes one block of its average colour."""
    before = _ONE_COLOUR.set(True)
    try:
        yield
    finally:
        _ONE_COLOUR.reset(before)


def _block(png: bytes) -> bytes:
    """A small PNG of the average colour of another, in its proportions."""
    with Image.open(io.BytesIO(png)) as image:
        width, height = image.size
        colour = image.convert("RGB").resize((1, 1), Image.Resampling.BOX)
    scale = BLOCK / max(width, height)
    block = colour.resize((max(1, round(width * scale)), max(1, round(height * scale))))
    buffer = io.BytesIO()
    block.save(buffer, "PNG")
    return buffer.getvalue()


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
    """HTML from a Jinja template of a stage, which may import `macros.html.j2` of this folder.

    The filters are `percent`, `number`, `capitalised` and `words`.

    Args:
        path: of the template.
        context: its variables; a missing one is an error.
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
