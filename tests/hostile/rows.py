"""Rows of the tables of malformed inputs: what is tried, and which one clear line comes of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule, LightningModule

from memtrain.cli.train_parser import TrainParser
from memtrain.cli.training import TrainCLI
from memtrain.errors import MemtrainError
from tests.conftest import ROOT

TINY = str(ROOT / "configs" / "tiny.yaml")

LONGEST = 700
"""Characters of the line that says what was found."""


@dataclass(frozen=True)
class Row:
    """One malformed input.

    Attributes:
        name: of the test.
        call: tries it; the input is made in the folder that is given.
        says: what the line says, as a regular expression; names file and field where there are any.
    """

    name: str
    call: Callable[[Path], object]
    says: str

    @property
    def param(self) -> object:
        return pytest.param(self, id=self.name)


def check(row: Row, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Try a row: what comes of it is a problem in one line, what was expected, and a remedy."""
    try:
        row.call(folder)
    except MemtrainError as error:
        text = f"{type(error).__name__}: {error}"
    except SystemExit as ended:
        if ended.code in (0, None):
            pytest.fail("accepted")
        printed = capsys.readouterr()
        text = printed.err if ended.code == 2 else str(ended.code)
        assert not printed.out.strip() or "No stage is named" in printed.out
    else:
        pytest.fail("accepted")
    assert re.search(row.says, text), text
    lines = text.strip().splitlines()
    said = [line for line in lines if re.match(r"\w*Error: ", line)]
    assert len(said) == 1, text
    assert lines.index(said[0]) + 3 == len(lines), text
    assert lines[-2].startswith("  Expected: "), text
    assert lines[-1].startswith("  Remedy: "), text
    assert len(said[0]) < LONGEST, text
    assert all(one.isprintable() for line in lines for one in line), repr(text)


def written(folder: Path, content: str | bytes, name: str = "a.yaml") -> Path:
    """A file with this content."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


@cache
def train_parser() -> TrainParser:
    """The parser of `train.py`, made once."""

    class Parsing(TrainCLI):
        def instantiate_classes(self) -> None:
            """Nothing is made."""

        def _run_subcommand(self, subcommand: str) -> None:
            """Nothing is run."""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Parsing(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=["fit", "--config", TINY],
        )
    parser = made.parser
    assert isinstance(parser, TrainParser)
    return parser
