"""Every colour of text has contrast on both grounds and in both themes, by WCAG 2's formula."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memtrain.evaluation.report import page

STYLE = Path(page.__file__).with_name("page.css.j2").read_text(encoding="utf-8")
TEXT = ("ink", "soft", "link", "alarm", "warn", "good")
MARKS = tuple(f"series-{number}" for number in range(1, 6))


def luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def themes() -> list[dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})", block)) for block in blocks]


@pytest.mark.parametrize("number", [0, 1])
def test_contrast(number: int) -> None:
    colours = themes()[number]
    for ground in ("paper", "panel"):
        for name in TEXT:
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name in MARKS:
            assert contrast(colours[name], colours[ground]) >= 3, (name, ground)


def test_the_formula() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_both_themes_name_the_same_colours_and_the_rest_uses_them() -> None:
    light, dark, paper = themes()
    assert set(light) == set(dark) == set(paper)
    assert set(re.findall(r"var\(--([\w-]+)\)", STYLE)) <= set(light)
