"""Charts inside the page: colours of the theme, text as text, names of their own."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from memtrain.evaluation.report.chart import ALARM, SERIES, VARIABLES, axes_of, chart, svg


def drawn(name: str) -> str:
    figure, axes = axes_of(1.5)
    axes.plot([0, 1], [0, 1], color=SERIES[0], label="<b>")
    axes.axhline(0.5, color=ALARM)
    axes.scatter([0.5], [0.5], color=SERIES[1])
    axes.set_xlabel("steps & <i>")
    axes.legend()
    return svg(figure, name=name, alt='a "line"')


def test_colours_are_those_of_the_theme_and_text_is_text() -> None:
    shown = drawn("a")
    assert "var(--series-1)" in shown and "var(--series-2)" in shown and "var(--alarm)" in shown
    assert "currentColor" in shown and not any(colour in shown for colour in VARIABLES)
    assert "steps &amp; &lt;i&gt;" in shown and "<b>" not in shown and "<i>" not in shown
    assert 'role="img" aria-label="a &#34;line&#34;"' in shown
    assert "<style" not in shown and "<metadata" not in shown and "http" not in shown
    parser = HTMLParser()
    parser.feed(shown)


def test_two_charts_share_no_name_and_point_into_themselves() -> None:
    names = [set(re.findall(r'\bid="([^"]+)"', drawn(name))) for name in ("a", "b")]
    assert names[0] and not names[0] & names[1]
    for name, inside in zip(("a", "b"), names, strict=True):
        aims = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawn(name)))
        assert aims and aims <= inside


def test_the_same_chart_is_the_same_text() -> None:
    assert drawn("a") == drawn("a")
    figure, _ = axes_of(1)
    assert "<figcaption>&lt;</figcaption>" in chart(figure, name="c", alt="", caption="<")
