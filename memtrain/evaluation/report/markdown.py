"""The report as Markdown, for a pull request or a paper: the same words and tables, without pictures.

The Markdown is made from the page itself, so that the two cannot differ. It uses GitHub's tables. Characters of
captions that could be read as markup are escaped.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$!@&])")
"""Characters with a meaning in Markdown, its tables, its formulas or HTML inside it; @ notifies people."""
BEGINNING = re.compile(r"^([-+=]|\d+[.)])(?=\s|$)")
"""Characters that begin a list or an underlined heading at the start of a line."""
SILENT = ("head", "nav", "figure", "img")
"""Elements that are left out with all their content."""
SILENT_CLASSES = ("skip", "part pictures")
"""Classes of elements that are left out: folded rows of pictures mean nothing without the pictures."""
VOID = ("meta", "link", "img", "br")
"""Elements without an end tag."""
BLOCKS = ("p", "h1", "h2", "h3", "li", "caption", "dt", "summary", "pre", "div", "dl")
HEADINGS = {"h1": "# ", "h2": "## ", "h3": "### ", "li": "- ", "dd": "- "}


def markdown(page: str) -> str:
    """Convert a page of this package to Markdown.

    Args:
        page: the HTML of the page.
    """
    reader = _Reader()
    reader.feed(page)
    reader.close()
    reader.block("")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(reader.lines)).strip() + "\n"


class _Reader(HTMLParser):
    """Collects lines of Markdown from the HTML elements that a page uses."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.text = ""
        self.silent: list[str] = []
        self.row: list[str] | None = None
        self.first = False
        self.figure = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.silent or tag in SILENT or dict(attrs).get("class") in SILENT_CLASSES:
            if tag not in VOID:
                self.silent.append(tag)
        elif tag == "dd":
            self.figure = True
        elif tag == "br":
            self.text += " "
        elif tag == "tr":
            self.block("")
            self.row = []
        elif tag in ("td", "th"):
            self.text = ""
        elif tag == "table":
            self.block("")
            self.first = True
        elif tag in BLOCKS and self.row is None:
            self.block("")
        elif tag == "small":
            self.text += " · " if self.figure else " "

    def handle_endtag(self, tag: str) -> None:
        self.figure = self.figure and tag != "dd"
        if self.silent:
            self.silent.pop()
        elif tag in ("td", "th") and self.row is not None:
            self.row.append(" ".join(self.text.split()))
            self.text = ""
        elif tag == "tr":
            self._end_row()
        elif tag == "table":
            self.lines.append("")
        elif tag == "dt":
            self.text += ": "
        elif tag in (*BLOCKS, "dd") and self.row is None:
            self.block(HEADINGS.get(tag, ""))
        elif tag == "span" and self.row is None:
            self.block("")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.text += SPECIAL.sub(r"\\\1", data)

    def block(self, before: str) -> None:
        """End a line of text, with `before` in front of it."""
        said = BEGINNING.sub(r"\\\1", " ".join(self.text.split()))
        self.text = ""
        if said:
            self.lines += [before + said] if before == "- " else ["", before + said, ""]

    def _end_row(self) -> None:
        assert self.row is not None  # a row begins before it ends
        if self.first:
            # Markdown's tables need headings, and a table of facts has none.
            self.lines.append("")
        self.lines.append("| " + " | ".join(self.row) + " |")
        if self.first:
            self.lines.append("|" + " --- |" * len(self.row))
            self.first = False
        self.row = None
