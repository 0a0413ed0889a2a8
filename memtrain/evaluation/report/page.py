"""The report: one HTML file without scripts or external resources, with its images inside.

The page is a pure function of the sections that the stages make from their result files, so it can be made again at any
time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from memtrain.errors import RecordError
from memtrain.evaluation.report.markdown import markdown
from memtrain.evaluation.report.section import Section, from_template
from memtrain.files.shown import inert
from memtrain.records import written_whole

NOTICE = (
    "This page leaves out images, captions and names. Each image is a block of its average colour. Each caption and "
    "each name is a code; equal texts have equal codes."
)
"""The notice at the top of a redacted page."""
FIGURES = 8
"""Largest number of key figures on the first screen."""
SENTENCES = 4
"""Number of sentences shown on the basis and on the limits of the answer; the reader can open the others."""


def write_page(folder: Path, sections: Sequence[Section], *, redacted: bool = False) -> Path:
    """Write `report.html` into `folder`, and the same content in Markdown as `results.md`.

    Args:
        folder: the folder of the results.
        sections: the sections of all stages, in any order.
        redacted: whether the sections come from redacted results. The page then says so, and is named
            `report-redacted.html`.

    Returns:
        The path of the report.

    Raises:
        RecordError: if there are no sections.
    """
    if not sections:
        raise RecordError(
            f"{folder} holds no results",
            expected="the output folder of a stage",
            remedy="check the path, or run `memtrain measure`",
        )
    text = inert(page(sections, notice=NOTICE if redacted else ""))
    path = folder / ("report-redacted.html" if redacted else "report.html")
    for content, place in (
        (text, path),
        (markdown(text), folder / ("results-redacted.md" if redacted else "results.md")),
    ):
        with written_whole(place) as unfinished:
            unfinished.write_text(content, encoding="utf-8")
    return path


def page(sections: Sequence[Section], *, notice: str = "") -> str:
    """Make the HTML of the page.

    Args:
        sections: the sections, in any order.
        notice: a text at the top of the page.
    """
    ordered = sorted(sections, key=lambda section: section.place)
    lead = next((section for section in ordered if section.verdict), None) or _first_words(ordered[0])
    config = next((section.config for section in ordered if section.config), None)
    anchored = [(section, f"part-{number}") for number, section in enumerate(ordered, 1)]
    limits = [limit for section in ordered for limit in section.limits]
    contents = [(anchor, section.title) for section, anchor in anchored if section.title]
    return from_template(
        Path(__file__).with_name("page.html.j2"),
        sections=anchored,
        lead=lead,
        most=SENTENCES,
        figures=[figure for section in ordered for figure in section.figures][:FIGURES],
        subject=next((section.subject for section in ordered if section.subject), ""),
        contents=[*contents, *([("limits", "Limits of the evaluation")] if limits else []), ("run", "About this run")],
        notice=notice,
        limits=limits,
        facts=[fact for section in ordered for fact in section.facts],
        config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
    )


def _first_words(section: Section) -> Section:
    """Use the first paragraph of a section as the answer of a page whose stages give no verdict."""
    found = re.search(r"<p[^>]*>(.*?)</p>", section.body, flags=re.DOTALL)
    text = Markup(found[1]).striptags() if found else section.title  # noqa: S704 (read from HTML, and escaped again)
    return replace(section, verdict={"level": "plain", "word": section.title if found else "", "text": text})
