"""Text from data in a form that matplotlib can draw."""

from __future__ import annotations

from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font


@cache
def _characters() -> frozenset[int]:
    """Code points for which the default font has a glyph."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def figure_text(text: str, most: int | None = None) -> str:
    """Make one line that matplotlib does not read as a formula; characters without a glyph become □.

    Args:
        text: any text.
        most: the largest number of characters; a longer text is cut, and ends with ….
    """
    line = " ".join(text.split())
    if most is not None and len(line) > most:
        line = line[: most - 1] + "…"
    return "".join(character if ord(character) in _characters() else "□" for character in line).replace("$", r"\$")
