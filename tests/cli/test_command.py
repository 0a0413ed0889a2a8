"""`memtrain COMMAND`: which command a first word is, and what is said of words that are none."""

from __future__ import annotations

import re
import sys

import pytest

import memtrain
from memtrain.cli import command
from memtrain.evaluation.stages.base import stage_names


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """What is called in place of the commands."""
    calls: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(sys, "argv", ["memtrain"])
    monkeypatch.setattr(command, "train", lambda words=None: calls.append(("train", words or sys.argv[1:])))
    monkeypatch.setattr(command, "evaluate", lambda words: calls.append(("evaluate", words)))
    return calls


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_command_the_overview_names_all_of_them(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command.main(words)
    shown = capsys.readouterr().out
    assert set(command.commands()) <= set(re.findall(r"^  (\w+) ", shown, re.MULTILINE))
    assert set(stage_names()) <= set(command.commands())


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--version"])
    assert capsys.readouterr().out == f"memtrain {memtrain.__version__}\n"


@pytest.mark.parametrize(
    ("words", "goes_to"),
    [
        (["train", "--config", "tiny"], ("train", ["--config", "tiny"])),
        # A process that Lightning starts for another GPU has the words of the first one.
        (["fit", "--config", "tiny"], ("train", ["fit", "--config", "tiny"])),
        (["scan", "folder"], ("train", ["scan", "folder"])),
        (["measure", "--run", "x"], ("evaluate", ["measure", "--run", "x"])),
    ],
)
def test_a_command_gets_its_words(
    words: list[str], goes_to: tuple[str, list[str]], called: list[tuple[str, list[str]]]
) -> None:
    command.main(words)
    assert called == [goes_to]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mesure"], r"no command 'mesure'(.|\n)*did you mean memtrain measure\?"),
        (["train", "measure"], r"'measure' is a command of its own(.|\n)*did you mean memtrain measure\?"),
        (["qqqq"], r"no command 'qqqq'(.|\n)*see memtrain --help"),
        (["--run", "x"], r"'--run' stands without a command"),
    ],
)
def test_what_is_no_command_is_refused_with_the_nearest(
    words: list[str], said: str, called: list[tuple[str, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err)
    assert not called
