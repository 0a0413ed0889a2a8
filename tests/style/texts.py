"""The prose in a file: paragraphs of a page, docstrings, messages and comments of a configuration."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from .rules import CODE

Lines = list[tuple[int, str]]


@dataclass(frozen=True)
class Text:
    """One paragraph, entry or message.

    Attributes:
        line: the line of the file on which it begins.
        text: the words, with line breaks as in the file, and `CODE` for each piece of code.
        entry: whether it is an entry of `Args:` or `Attributes:`.
    """

    line: int
    text: str
    entry: bool = False


SPANS = (
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"!\[[^\]]*\]\([^)]*\)"),  # a picture
    re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL),
    re.compile(r"(?<=\])\([^)\s]*(?:\s+\"[^\"]*\")?\)"),  # the address of a link
    re.compile(r"<?https?://[^\s)>]+>?"),
    re.compile(r"\$\$?(?=\S)[^$]+?(?<=\S)\$\$?|\\\(.+?\\\)", re.DOTALL),
    re.compile(r":\w+:(?=CODE)"),  # :class:`...`
)
ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+")
SECTION = re.compile(r"^(Args|Arguments|Attributes|Raises|Returns|Yields|Examples?|References?):\s*$")
ENTRY = re.compile(r"^(?:\*{0,2}[\w.*, `]+(?:\s\([^)]*\))?):\s+")
SKIPPED = re.compile(r"^\s*(?:#|\||<|:::|\[[^\]]+\]:|\*\[[^\]]+\]:|!!!|\?\?\?|===|-{3,}|={3,}|--8<--)")
MESSAGES = re.compile(r"(?:Error|Warning|print|warn|rank_zero_warn|rank_zero_info|info|warning|error|say|tell)$")
HELP = frozenset({"help", "description", "epilog", "expected", "remedy", "problem"})


def plain(text: str) -> str:
    """A text with every piece of code, address and formula as one word; line breaks stay."""
    for number, span in enumerate(SPANS):
        word = CODE if number in (2, 4, 5) else ""
        text = span.sub(lambda match, word=word: word + "\n" * match[0].count("\n"), text)  # type: ignore[misc]
    return text


def paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[Text]:
    """Paragraphs and items of lists, which end at an empty line or at the next item."""
    held: Lines = []
    for number, line in [*lines, (0, "")]:
        if held and (not line.strip() or ITEM.match(line)):
            yield Text(held[0][0], plain("\n".join(part for _, part in held)))
            held = []
        if line.strip():
            held.append((number, ITEM.sub("", line).strip()))


def indent(line: str) -> int:
    """How many spaces a line begins with."""
    return len(line) - len(line.lstrip())


def without_code(lines: Lines) -> Iterator[tuple[int, str]]:
    """The lines of a page; an empty one for each line of code, of a table, of a formula and of a heading."""
    fence, listed, blank = "", False, True
    for place, (number, line) in enumerate(lines):
        text = line.strip()
        if fence:
            fence = "" if text.endswith(fence) else fence
            yield number, ""
        elif opening := re.match(r"```+|~~~+|\$\$(?!.*\$\$)|\\\[|<!--(?!.*-->)|---$", text):
            marks = {"\\[": "\\]", "<!--": "-->"}
            front = text != "---" or place == 0
            closes = text.endswith(marks.get(opening[0], opening[0])) and text != opening[0]
            fence = marks.get(opening[0], opening[0]) if front and not closes else ""
            yield number, ""
        elif SKIPPED.match(line):
            listed = text.startswith(("!!!", "???", "===")) or (listed and not text.startswith("#"))
            yield number, ""
        elif text and blank and indent(line) >= 4 and not listed:
            yield number, ""  # indented code; `blank` stays, so that its next line is code too
            continue
        else:
            if text:
                listed = bool(ITEM.match(line)) or (listed and indent(line) > 0) or (listed and not blank)
            yield number, re.sub(r"^(?:>|:  )\s*", "", line)
        blank = not text


def of_page(source: str) -> Iterator[Text]:
    """The paragraphs of a Markdown page."""
    yield from paragraphs(without_code(list(enumerate(source.splitlines(), start=1))))


def of_docstring(source: str, first: int) -> Iterator[Text]:
    """The paragraphs and entries of a docstring in Google's form.

    Args:
        source: the docstring as it stands in the file.
        first: the line of the file on which it begins.
    """
    rows = source.splitlines()
    margin = min((indent(row) for row in rows[1:] if row.strip()), default=0)
    lines = [(first + place, row[margin:] if place else row.strip()) for place, row in enumerate(rows)]
    section, held = "", Lines()
    for number, line in lines:
        if header := SECTION.match(line):
            yield from of_section(section, held)
            section, held = header[1], []
        else:
            held.append((number, line))
    yield from of_section(section, held)


def of_section(section: str, lines: Lines) -> Iterator[Text]:
    """The paragraphs of one section; of `Args:` and the like, each entry without its name."""
    if section.startswith(("Example", "Reference")):
        return
    if section in ("", "Returns", "Yields"):
        inner = [(number, line[4:] if section and line.startswith("    ") else line) for number, line in lines]
        shown = (line for line in without_code(inner) if not line[1].lstrip().startswith((">>>", "...")))
        yield from paragraphs(shown)
        return
    start: list[int] = [place for place, (_, line) in enumerate(lines) if indent(line) == 4 and ENTRY.match(line[4:])]
    for begin, end in pairwise([*start, len(lines)]):
        (number, head), *rest = lines[begin:end]
        texts = [part for _, part in rest]
        while texts and (not texts[-1].strip() or indent(texts[-1]) < 4):
            texts.pop()
        text = "\n".join([ENTRY.sub("", head[4:]), *(part.strip() for part in texts)])
        yield Text(number, plain(text), entry=section != "Raises")


def strings(node: ast.AST) -> Iterator[Text]:
    """The texts that an expression is made of; what is filled in stands as code."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield Text(node.lineno, plain(node.value))
    elif isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else CODE for part in node.values]
        yield Text(node.lineno, plain("".join(parts)))
    elif isinstance(node, ast.IfExp):
        yield from strings(node.body)
        yield from strings(node.orelse)
    elif isinstance(node, ast.BinOp):
        yield from strings(node.left)
        yield from strings(node.right)


def of_module(source: str) -> Iterator[Text]:
    """Docstrings, help texts and messages of a Python module."""
    for node in ast.walk(ast.parse(source)):
        for part in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            if (
                isinstance(part, ast.Expr)
                and isinstance(part.value, ast.Constant)
                and isinstance(part.value.value, str)
            ):
                yield from of_docstring(part.value.value, part.value.lineno)
        if isinstance(node, ast.Call):
            named = [word.value for word in node.keywords if word.arg in HELP]
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for given in [*(node.args if MESSAGES.search(name) else []), *named]:
                yield from strings(given)


def of_configuration(source: str) -> Iterator[Text]:
    """The comments of a YAML file, without commands and settings that are commented out."""
    lines = Lines()
    for number, line in enumerate(source.splitlines(), start=1):
        before, mark, comment = line.partition("# ")
        shown = mark and not comment.startswith(" ") and not re.match(r"-? ?[a-z_.+]+:(?:\s|$)", comment)
        if before.strip():
            lines.append((number, ""))
        lines.append((number, comment if shown and before.count('"') % 2 == 0 else ""))
    yield from paragraphs(lines)


def of_notebook(source: str) -> Iterator[Text]:
    """The paragraphs of a notebook's Markdown cells, on the line of the file where their cell begins."""
    for cell in json.loads(source)["cells"]:
        page = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and page:
            before = source.partition(json.dumps(page.splitlines(keepends=True)[0], ensure_ascii=False))[0]
            for text in of_page(page):
                yield Text(before.count("\n") + text.line, text.text)


READERS = {".md": of_page, ".py": of_module, ".yaml": of_configuration, ".ipynb": of_notebook}


def of_file(path: Path) -> Iterator[Text]:
    """The prose of a file."""
    yield from READERS[path.suffix](path.read_text(encoding="utf-8"))
