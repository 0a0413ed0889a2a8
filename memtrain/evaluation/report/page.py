"""The report: one HTML file without scripts or external resources, with its images inside.

A pure function of the sections that the stages make of their result files, so it can be made again at any time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from memtrain.errors import RecordError
from memtrain.evaluation.report.section import Section, from_template
from memtrain.records import written_whole


def write_page(folder: Path, sections: Sequence[Section]) -> Path:
    """Write `report.html` into `folder`.

    Args:
        folder: of the results.
        sections: what the stages say about it, in any order.

    Returns:
        The path of the report.

    Raises:
        RecordError: if no stage has anything to say.
    """
    if not sections:
        raise RecordError(
            f"{folder} holds no results", expected="the output folder of a stage", remedy="check the path, or evaluate"
        )
    ordered = sorted(sections, key=lambda section: section.place)
    config = next((section.config for section in ordered if section.config), None)
    text = from_template(
        Path(__file__).with_name("page.html.j2"),
        sections=ordered,
        limits=[limit for section in ordered for limit in section.limits],
        facts=[fact for section in ordered for fact in section.facts],
        config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
    )
    path = folder / "report.html"
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path
