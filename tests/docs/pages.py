"""The blocks and commands of the pages: README.md, CONTRIBUTING.md, slurm/README.md and docs/.

A page may say three things about the block that follows, each in a comment of its own line:

- `<!-- excerpt: path -->`: the block stands in this file, word for word;
- `<!-- not run: reason -->`: the block cannot run in a test, and why;
- `<!-- not a command: reason -->`: the lines look like commands and are none.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tests.conftest import ROOT

PROGRAMS = ("memtrain", "python", "pytest", "pip", "bash", "sbatch", "mkdocs", "accelerate", "torchrun", "ruff")
"""First words by which a line without a prompt is known as a command."""
SHELLS = ("console", "sh", "bash", "shell")
FORM = re.compile(r"\b(COMMAND|STAGE)\b")
"""Words that stand for any command: such a text is a form, and no command."""
FENCE = re.compile(r"^(?P<indent>[ \t>]*)(?P<fence>`{3,}|~{3,})[ \t]*\{?[ \t]*\.?(?P<language>[\w+-]*)(?P<rest>.*)$")
MARKER = re.compile(r"<!-- (excerpt|not run|not a command): (.+?) -->")
WRITTEN = re.compile(r"(?:Write|Save|Put) [^`]*`([\w./-]+\.\w+)`:$")
"""The sentence before a block that the reader writes to a file."""
INLINE = re.compile(rf"(?<!`)(`+)((?:{'|'.join(PROGRAMS[:6])})\s[^`]+?)\1(?!`)")


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        page: path of the page in the repository.
        line: number of the line at which the block begins.
        language: the word behind the fence; empty without one, `indented` for a block without a fence.
        text: the lines, without the indentation of the block.
        marks: the comments in front of the block, by their first words.
        title: the name of the file that the reader writes the block to; empty for none.
    """

    page: str
    line: int
    language: str
    text: str
    marks: tuple[tuple[str, str], ...] = ()
    title: str = ""

    def mark(self, name: str) -> str | None:
        """What a comment in front of the block says."""
        return dict(self.marks).get(name)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: path of the page in the repository.
        line: number of its line.
        text: the command as one line, without prompt and comment.
        not_run: why the command cannot run; None for a command that runs.
        inline: whether the command stands in a sentence or table.
    """

    page: str
    line: int
    text: str
    not_run: str | None = None
    inline: bool = False

    @property
    def words(self) -> list[str]:
        """The words of the command, without settings of the environment in front."""
        words = shlex.split(self.text)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        return words

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@cache
def pages() -> tuple[str, ...]:
    """Paths of all pages."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "slurm/README.md")]
    found += sorted((ROOT / "docs").rglob("*.md"))
    return tuple(path.relative_to(ROOT).as_posix() for path in found)


@cache
def text_of(page: str) -> str:
    """The text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def blocks(page: str, text: str | None = None) -> tuple[Block, ...]:
    """The blocks of a page.

    Args:
        page: path of the page.
        text: text in the place of that of the page.
    """
    lines = (text_of(page) if text is None else text).split("\n")
    found, at, marks = [], 0, []
    while at < len(lines):
        line = lines[at]
        if fence := FENCE.match(line):
            end = at + 1
            while end < len(lines) and not re.fullmatch(rf"[ \t>]*{fence['fence']}[ \t]*", lines[end]):
                end += 1
            body = [one.removeprefix(fence["indent"]) for one in lines[at + 1 : end]]
            before = next((one for one in reversed(lines[:at]) if one.strip()), "")
            title = re.search(r"title=\"([^\"]+)\"", fence["rest"]) or WRITTEN.search(before)
            text_ = "\n".join(body) + "\n"
            found.append(Block(page, at + 1, fence["language"], text_, tuple(marks), title[1] if title else ""))
            at, marks = end + 1, []
        elif line.startswith("    ") and (at == 0 or not lines[at - 1].strip()) and _is_command(line.strip()):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            body = textwrap.dedent("\n".join(lines[at:end])).strip("\n")
            found.append(Block(page, at + 1, "indented", body + "\n", tuple(marks)))
            at, marks = end, []
        else:
            if mark := MARKER.search(line):
                marks.append((mark[1], mark[2]))
            elif line.strip():
                marks = []
            at += 1
    return tuple(found)


@cache
def commands(page: str, text: str | None = None) -> tuple[Command, ...]:
    """The commands of a page, in its order; see :func:`blocks`."""
    whole = text_of(page) if text is None else text
    found, prose = [], whole.split("\n")
    for block in blocks(page, text):
        length = block.text.count("\n") + (1 if block.language == "indented" else 2)
        for number in range(block.line - 1, min(block.line - 1 + length, len(prose))):
            prose[number] = ""
        if block.mark("not a command") is None and block.language in (*SHELLS, "indented"):
            for offset, line in _shell_lines(block):
                reason = block.mark("not run")
                found += [Command(page, block.line + offset, one, reason) for one in _split(line)]
    rest = "\n".join(prose)
    for inline in INLINE.finditer(rest):
        words = " ".join(inline[2].replace("\\|", "|").split())
        if not FORM.search(words):
            found.append(Command(page, rest.count("\n", 0, inline.start()) + 1, words, inline=True))
    return tuple(sorted(found, key=lambda command: command.line))


def _is_command(line: str) -> bool:
    words = [word for word in line.split() if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    return bool(words) and words[0] in PROGRAMS


def _shell_lines(block: Block) -> Iterator[tuple[int, str]]:
    """The commands of a block, each with the number of its line in the block; lines that go on are joined."""
    prompted = any(line.startswith("$ ") for line in block.text.split("\n"))
    held, start = "", 0
    for number, line in enumerate(block.text.split("\n")):
        if not held:
            if prompted and not line.startswith("$ "):
                continue
            line, start = line.removeprefix("$ "), number
        held += line.removeprefix("> ") if held and prompted else line
        if held.rstrip().endswith("\\"):
            held = held.rstrip()[:-1] + " "
            continue
        if _is_command(held):
            yield start + (block.language != "indented"), _without_comment(held)
        held = ""


def _without_comment(line: str) -> str:
    return " ".join(re.sub(r"(^|\s)#\s.*$", "", line).split())


def _split(line: str) -> list[str]:
    """The commands of a line."""
    parts = re.split(r"\s(?:&&|\|\||;)\s", line)
    return [part for part in (one.strip() for one in parts) if part and not FORM.search(part)]
