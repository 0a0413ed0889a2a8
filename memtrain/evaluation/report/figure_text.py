"""Text from data, as matplotlib can draw it."""

from __future__ import annotations

from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font


@cache
def _characters() -> frozenset[int]:
    """What the default font has a glyph for."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def figure_text(text: str, most: int | None = None) -> str:
    """One line that is not read as a formula; characters that the font lacks become □.

    Args:
        text: anything.
        most: characters at most; what is cut off is shown as ….
    """
    line = " ".join(text.split())
    if most is not None and len(line) > most:
        line = line[: most - 1] + "…"
    return "".join(character if ord(character) in _characters() else "□" for character in line).replace("$", r"\$")
