"""The content of a help screen, and the text of its main options."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LEFT = 26
"""Columns of the options, where a screen names no other number; their help stands to the right."""
NARROW, WIDE = 80, 110
"""Fewest and most columns that a help screen takes."""


@dataclass(frozen=True)
class Group:
    """The options under one heading.

    Attributes:
        title: the heading.
        main: each main option with its value, such as `--run FOLDER`, and its short help. Values that one can choose
            from stand between bars: `--engine local|ray`.
        more: the other options of this heading, separated by spaces; choices follow after `=`, as in
            `--engine=local|ray`.
    """

    title: str
    main: Mapping[str, str] = field(default_factory=dict)
    more: str = ""

    def choices(self) -> dict[str, list[str]]:
        """Each option's name, with the values that one can choose from; empty where any value will do."""
        words = [written.partition(" ")[::2] for written in self.main]
        words += [written.partition("=")[::2] for written in self.more.split()]
        return {name: values.split("|") if "|" in values else [] for name, values in words}

    def names(self) -> list[str]:
        """The names of all options of this heading."""
        return list(self.choices())

    def valueless(self) -> set[str]:
        """The main options that take no value."""
        return {written for written in self.main if " " not in written}

    def folded(self) -> Group:
        """The same heading without main options."""
        own = [name + (f"={'|'.join(values)}" if values else "") for name, values in self.choices().items()]
        return Group(self.title, more=" ".join(own))


SCREEN = Group(
    "Output",
    {
        "--quiet": "print errors only",
        "--json": "end with one JSON object on standard output",
        "--help all": "list all options",
    },
)
"""Options of every command."""
TRUST = "--trust --config --print_config"
"""Options of every command that reads configurations."""


@dataclass(frozen=True)
class Screen:
    """The help of one command.

    Attributes:
        command: the name of the command.
        says: one sentence that says what the command does.
        examples: commands that can be typed, each with a comment or an empty one.
        groups: all options of the command, each under exactly one heading.
        words: what may stand in front of the options, such as `FOLDER`.
        note: a line below the options.
        left: the columns of the options.
    """

    command: str
    says: str
    examples: Mapping[str, str]
    groups: Sequence[Group]
    words: str = ""
    note: str = ""
    left: int = LEFT

    def names(self) -> list[str]:
        """The names of all options."""
        return [name for group in self.groups for name in group.names() if name != "--help"]

    def usage(self) -> str:
        """The line that says what may be typed."""
        parts = ["usage: memtrain", self.command, self.words and f"[{self.words}]", self.groups and "[options]"]
        return " ".join(str(part) for part in parts if part)

    def text(self, width: int | None = None) -> str:
        """The help screen of the main options.

        Args:
            width: the columns of the screen; default those of the terminal.
        """
        columns = screen_width(width)
        lines = [self.usage(), ""]
        lines += [*textwrap.wrap(self.says, columns), ""]
        lines += [*examples(self.examples, columns), ""]
        for group in self.groups:
            if group.main:
                lines.append(f"{group.title}:")
                for written, said in group.main.items():
                    lines += entry(written, said, columns, left=self.left)
        lines += ["", *(textwrap.wrap(self.note, columns) if self.note else ())]
        if self.groups:
            lines += [f"`memtrain {self.command} --help all` lists all {len(self.names())} options."]
        return "\n".join(lines).rstrip()


def screen_width(width: int | None = None) -> int:
    """The columns that a help screen takes: those of the terminal, within :data:`NARROW` and :data:`WIDE`."""
    return min(max(width or shutil.get_terminal_size((NARROW, 24)).columns, NARROW), WIDE)


def examples(written: Mapping[str, str], columns: int) -> list[str]:
    """Commands, each with its comment: beside it where there is room, else above it."""
    longest = max((len(command) for command, comment in written.items() if comment), default=0)
    lines = []
    for command, comment in written.items():
        line = f"  {command:<{longest}}   # {comment}" if comment else f"  {command}"
        lines += [line] if len(line) <= columns else [f"  # {comment}", f"  {command}"]
    return lines


def entry(written: str, said: str, columns: int, *, left: int = LEFT) -> list[str]:
    """An option, with its help to the right of it or below it."""
    wrapped = textwrap.wrap(said, columns - left)
    first = f"  {written}"
    if wrapped and len(first) <= left - 2:
        first = f"{first:<{left}}{wrapped.pop(0)}"
    return [first, *(" " * left + line for line in wrapped)]
