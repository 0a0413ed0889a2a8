"""What sections are made of: escaped text, tables whose figures are aligned, pictures inside the page."""

from __future__ import annotations

import io
from base64 import b64decode
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from PIL import Image

from memtrain.evaluation.report.section import (
    THUMBNAIL,
    from_template,
    heading,
    made,
    notes,
    paragraph,
    picture,
    results_of,
    table,
    thumbnail_uri,
)


def test_text_is_escaped() -> None:
    for part in (paragraph("<b>"), heading("<b>"), notes(["<b>", "c"]), table(("<b>", "c"), [("<b>", 1)])):
        assert "<b>" not in part and "&lt;b&gt;" in part


def test_the_first_column_is_text() -> None:
    shown = table(("name", "n"), [("a", 1), ("b", None)])
    assert '<tr><th scope="col">name</th><th scope="col" class="n">n</th></tr>' in shown
    assert '<tr><th scope="row">a</th><td class="n">1</td></tr>' in shown
    assert "<caption>" not in shown and 'aria-label="name"' in shown
    named = table(("name", "n"), [("a", 1)], caption='"<')
    assert "<caption>&#34;&lt;</caption>" in named and 'aria-label="&#34;&lt;"' in named


def test_pictures_are_inside_and_made_smaller(tmp_path: Path) -> None:
    assert picture(tmp_path / "none.png", alt="none") == ""
    for name, size in (("small", (40, 30)), ("large", (400, 300))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
        uri = thumbnail_uri(tmp_path / f"{name}.png")
        with Image.open(io.BytesIO(b64decode(uri.partition("base64,")[2]))) as image:
            assert image.size == ((40, 30) if name == "small" else (THUMBNAIL, THUMBNAIL * 3 // 4))
    assert picture(tmp_path / "small.png", alt='"<').count("&#34;&lt;") == 1


def test_a_template_escapes_and_misses_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.html.j2").write_text("{{ text }} {{ share|percent }} {{ none|number }}")
    assert from_template(tmp_path / "a.html.j2", text="<", share=0.125, none=None) == "&lt; 12.5% –"
    with pytest.raises(UndefinedError, match="text"):
        from_template(tmp_path / "a.html.j2", share=0.125, none=None)


def test_a_stage_that_has_not_run_has_no_results(tmp_path: Path) -> None:
    assert results_of(tmp_path, "a.json") is None
    (tmp_path / "a.json").write_text('{"b": 1}')
    assert results_of(tmp_path, "a.json") == {"b": 1}


def test_facts_say_when_of_what_and_how() -> None:
    results = {"created": "then", "model": "m", "versions": {"torch": "2"}}
    assert made(results, "x") == [("x", "then; m; torch 2")]
    sampling = {"steps": 5, "guidance_scale": 4.0, "seeds": [0, 1]}
    assert made({**results, "model": "", "sampling": sampling}, "x") == [
        ("x", "then; 5 steps, guidance 4.0, seeds 0, 1; torch 2")
    ]
