"""Reads the words of a command by the command's own parser, without running it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from memtrain.cli.command import main
from memtrain.cli.command_parser import CarefulParser
from tests.conftest import ROOT
from tests.docs.pages import Command, blocks, pages

STANDING = {"...": "configs/tiny.yaml", "PATH": "my_folder"}
"""Words that stand for a word of the reader's, and what they are taken for here."""
READERS = ("mine.yaml", "statistics_additional_laion_prompts_v1_4.pt")
"""Files of the reader's that a parser looks for at once."""


class Understood(BaseException):
    """The words of a command were understood."""


def placed(words: Sequence[str]) -> list[str]:
    """The words with those that stand for others replaced, and of several values the first."""
    if "|" in words:
        words = words[: words.index("|")]
    return [STANDING.get(word, word) for word in words]


@contextlib.contextmanager
def readers_folder(folder: Path) -> Iterator[None]:
    """A working folder like that of a clone, with the files that a reader makes."""
    for name in ("configs", "assets"):
        (folder / name).symlink_to(ROOT / name)
    for name in READERS:
        (folder / name).write_text((ROOT / "configs" / "tiny.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    for block in (block for page in pages() for block in blocks(page) if block.title):
        path = folder / block.title
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        os.chdir(before)


def refusal(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What the parser of a command says against its words; None if it understands them.

    Args:
        words: the words behind `memtrain`.
        monkeypatch: stops the command when its words are understood.
    """
    parse, depth = CarefulParser.parse_args, [0]

    def stopping(self: CarefulParser, *args: Any, **options: Any) -> Any:
        depth[0] += 1
        try:
            found = parse(self, *args, **options)
        finally:
            depth[0] -= 1
        if depth[0] == 0:
            raise Understood
        return found

    def tried() -> str | None:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                main(list(words))
        except Understood:
            return None
        except SystemExit as ended:
            if ended.code in (None, 0):
                return None  # help, or a command whose words argparse takes
            text = ended.code if isinstance(ended.code, str) else said.getvalue()
            return " ".join(text.split())[:600]
        shows_help = bool({"-h", "--help"} & set(words)) or not words or words[0] == "completion"
        return None if shows_help else "the command ran without looking at its words"

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(CarefulParser, "parse_args", stopping)
        patch.setattr(sys, "argv", ["memtrain", *words])
        return tried()


def wrong_with_script(command: Command) -> str | None:
    """What is wrong with a command that runs a file of the repository: no such file, or an option it does not name."""
    words = command.words
    if words[0] in ("pip", "mkdocs", "ruff") or words[:3] == ["python", "-m", "venv"]:
        return None
    names = [word for word in words[1:] if re.fullmatch(r"[\w./]+\.(py|sbatch|sh)|\.ci/\w+", word)]
    if words[:2] == ["python", "-m"]:
        path = words[2].replace(".", "/")
        names = [f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py"]
    missing = [name for name in names if name not in ("train.py", "evaluate.py") and not _found(name, command)]
    if missing:
        return f"there is no {', '.join(missing)}"
    if words[0] != "python" or not names:
        return None
    script = (ROOT / names[0]).read_text(encoding="utf-8")
    unknown = [
        option
        for option in words
        if option.startswith("--")
        and not re.search(rf"\b{re.escape(re.split(r'[.=]', option[2:])[0]).replace('-', '[-_]')}\b", script)
    ]
    return f"{names[0]} names no {', '.join(unknown)}" if unknown else None


def _found(name: str, command: Command) -> bool:
    """Whether a file is in the repository, or stands for one of the reader's."""
    return (ROOT / name).is_file() or name.startswith("/path/to/") or f"--output {name}" in command.text
