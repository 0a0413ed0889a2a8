"""Strangers' text on a terminal, in a log and in one line, where nothing in it acts.

A caption may hold escape sequences that move the cursor or change the title or the clipboard. It may hold marks that
turn the order of the following text, and line breaks that fake a line of output. Only printable characters are shown.
Everything else is written as `repr` would write it.
"""

from __future__ import annotations

import re
import unicodedata

ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, marks that turn the order of text, and halves of surrogate pairs, which cannot be encoded."""
MOST = 300
"""The largest number of characters that are shown."""


def shown(text: object, *, most: int = MOST) -> str:
    """Return text in one line that nothing acts on.

    Args:
        text: a caption, a prompt or a path; another object is turned into its `str`.
        most: the largest number of characters; `...` replaces the rest.
    """
    whole = str(text)
    cut = whole if len(whole) <= most else whole[: most - 3] + "..."
    return "".join(one if one == " " or _harmless(one) else ascii(one)[1:-1] for one in cut)


def inert(text: str) -> str:
    """Return a whole page or file in which acting characters are written out and all others are kept.

    Args:
        text: the text; line feeds and tabs stay.
    """
    return ACTING.sub(lambda found: ascii(found[0])[1:-1], text)


def _harmless(character: str) -> bool:
    return character.isprintable() and unicodedata.category(character) not in ("Cf", "Cs", "Co", "Cn")
