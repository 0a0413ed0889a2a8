"""The report: one HTML file without scripts or external resources, with its images inside.

A pure function of the sections that the stages make of their result files, so it can be made again at any time.
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
    "Images, captions and names are left out of this page: each image is shown as one block of its average colour, and "
    "each caption and name as a code that says no more than which ones are equal."
)
"""What a redacted page says of itself."""
FIGURES = 8
"""Key figures on the first screen at most."""
SENTENCES = 4
"""What the answer rests on, and what it cannot say, in so many sentences each; the reader opens the others."""


def write_page(folder: Path, sections: Sequence[Section], *, redacted: bool = False) -> Path:
    """Write `report.html` into `folder`, and the same in Markdown as `results.md`.

    Args:
        folder: of the results.
        sections: what the stages say about it, in any order.
        redacted: the sections were made of redacted results: the page says so, and has a name of its own.

    Returns:
        The path of the report.

    Raises:
        RecordError: if no stage has anything to say.
    """
    if not sections:
        raise RecordError(
            f"{folder} holds no results", expected="the output folder of a stage", remedy="check the path, or evaluate"
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
    """The page's HTML.

    Args:
        sections: in any order.
        notice: stands above everything.
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
        contents=[*contents, *([("limits", "What this cannot tell")] if limits else []), ("run", "Run")],
        notice=notice,
        limits=limits,
        facts=[fact for section in ordered for fact in section.facts],
        config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
    )


def _first_words(section: Section) -> Section:
    """The first paragraph of a page whose stages judge nothing, as its answer."""
    found = re.search(r"<p[^>]*>(.*?)</p>", section.body, flags=re.DOTALL)
    text = Markup(found[1]).striptags() if found else section.title  # noqa: S704 (read from HTML, and escaped again)
    return replace(section, verdict={"level": "plain", "word": section.title if found else "", "text": text})
