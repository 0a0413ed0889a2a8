"""Strangers' text on a terminal, in a log and in one line: nothing in it acts.

A caption may hold escape sequences that move the cursor, change the title or the clipboard, marks that turn the order
of what follows, and line breaks that fake a line of output. Shown are printable characters; everything else is written
as `repr` would write it.
"""

from __future__ import annotations

import re
import unicodedata

ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, marks that turn the order of text, and halves of surrogate pairs, which cannot be encoded."""
MOST = 300
"""Characters that are shown at most."""


def shown(text: object, *, most: int = MOST) -> str:
    """Text in one line that does nothing but be read.

    Args:
        text: of a caption, a prompt, a path; of another object its `str`.
        most: characters at most; the rest is said to be left out by `...`.
    """
    whole = str(text)
    cut = whole if len(whole) <= most else whole[: most - 3] + "..."
    return "".join(one if one == " " or _harmless(one) else ascii(one)[1:-1] for one in cut)


def inert(text: str) -> str:
    """A whole page or file whose characters only stand there: those that act are written out, all others are kept.

    Args:
        text: with line feeds and tabs, which stay.
    """
    return ACTING.sub(lambda found: ascii(found[0])[1:-1], text)


def _harmless(character: str) -> bool:
    return character.isprintable() and unicodedata.category(character) not in ("Cf", "Cs", "Co", "Cn")
