"""What documents, docstrings and configurations name is there: files, modules, classes and functions of memtrain."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import ROOT
from .test_import_arrows import module_name

PACKAGE = ROOT / "memtrain"
PLACES = (ROOT, PACKAGE, ROOT / "configs")
"""Where a path that is named may begin."""

FOLDERS = {path.parent.name for place in PLACES for path in place.glob("[a-z]*/*")} - {"runs"}
PATH = re.compile(rf"(?<![\w/.<>{{}}*-])(?:{'|'.join(sorted(FOLDERS))})/[\w./-]*+(?![<{{*])")
DOTTED = re.compile(r"(?<![\w./])memtrain(?:\.[A-Za-z_]\w*)+(?!\.?\w)")
ROLE = re.compile(r":(?:mod|class|func|meth|attr|data|exc):`~?(\w[\w.]*)`")
WRITTEN = re.compile(r"(?:--\w+ |\| )benchmarks/\w+\.json|evaluation/\w+\.parquet")
"""Files that a command or a run writes."""

SHOWN = re.compile(r"[\w./]*sample_tempering[\w.]*")
"""The mitigation that CONTRIBUTING.md shows as a new one, which tests/test_contributing.py writes and runs."""

PATTERNS = (
    *("*.md", "docs/**/*.md", "assets/**/*.md", "benchmarks/*.md"),
    *("memtrain/**/*.py", "benchmarks/*.py", "examples/*.py", "assets/*.py", "*.py"),
    *("configs/**/*.yaml", "slurm/*"),
)
SOURCES = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern) if path.is_file()})


def member(owner: Any, name: str) -> Any:
    """What an object has under a name, or the annotation of a field without a default; None if it has nothing."""
    return getattr(owner, name, getattr(owner, "__annotations__", {}).get(name))


def resolve(name: str) -> Any:
    """The module, class or function of this full name; None if there is none."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = member(found, part)
        return found
    return None


def is_known(name: str, module: ModuleType) -> bool:
    """Whether a name in the text of a module is a full one, the module's own, or one of its classes'."""
    if resolve(name) is not None:
        return True
    for found in [module, *(value for value in vars(module).values() if isinstance(value, type))]:
        for part in name.split("."):
            found = member(found, part)
        if found is not None:
            return True
    return False


def missing(text: str, module: ModuleType | None = None) -> Iterator[str]:
    """The paths and names in a text that lead nowhere."""
    text = SHOWN.sub("", WRITTEN.sub("", text))
    for match in PATH.finditer(text):
        path = match[0].rstrip(".")
        # Without a suffix it may be two words with a stroke between them, or a folder of another project.
        if (path.endswith("/") or Path(path).suffix) and not any((place / path).exists() for place in PLACES):
            yield path
    for name in set(DOTTED.findall(text)):
        if resolve(name) is None:
            yield name
    # Scripts are no modules of the package, and name each other's functions.
    for name in set() if module is None else set(ROLE.findall(text)) - set(DOTTED.findall(text)):
        if not is_known(name, module):
            yield name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_named_is_there(path: Path) -> None:
    inside = path.suffix == ".py" and path.is_relative_to(PACKAGE)
    module = importlib.import_module(module_name(path)) if inside else None
    assert not sorted(missing(path.read_text(encoding="utf-8"), module))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see `memtrain/callbacks/monitor.py`, `callbacks/monitor.py` and configs/tiny.yaml.", []),
        ("see `memtrain/calibration.py`", ["memtrain/calibration.py"]),
        ("(`callbacks/loss_check.py`)", ["callbacks/loss_check.py"]),
        ("--config configs/nothing.yaml", ["configs/nothing.yaml"]),
        ("`configs/callbacks/`, `memtrain/nothing/` and diffusers' `examples/text_to_image`", ["memtrain/nothing/"]),
        ("{only_in: assets/clipart-pd.tar, path: assets/nothing.tar}", ["assets/nothing.tar"]),
        ("one file is `signals/<name>.py`, `configs/*/x.yaml` or `tests/{a,b}.py`", []),
        ("`memtrain.models.probe.DenoiserProbe.begin`, memtrain.monitoring, memtrain.similarity_threshold.1", []),
        ("class_path: memtrain.callbacks.summary.Summary", ["memtrain.callbacks.summary.Summary"]),
        ("memtrain.models.probe.DenoiserProbe.start.", ["memtrain.models.probe.DenoiserProbe.start"]),
        (":func:`resolve`, :meth:`Here.there` and :meth:`there`", []),
        (":class:`Nobody` and :meth:`Here.nowhere`", ["Here.nowhere", "Nobody"]),
    ],
)
def test_what_leads_nowhere_is_found(text: str, found: list[str]) -> None:
    module = ModuleType("module")
    module.resolve = resolve  # type: ignore[attr-defined]
    module.Here = type("Here", (), {"there": 1})  # type: ignore[attr-defined]
    assert sorted(missing(text, module)) == found
