"""CONTRIBUTING.md: its walks are ways through the code, and the mitigation that it shows works as it stands there."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import memtrain.callbacks
from memtrain import cli
from memtrain.records import read_steps
from tests.conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WALKS = dict(re.findall(r"^\| (an? .+?) \| (`.+`) \|$", TEXT[: TEXT.index("## Adding a method")], re.MULTILINE))


def module(path: str) -> str:
    return ".".join(("memtrain", *Path(path).with_suffix("").parts))


def imported(path: str) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "memtrain" / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_there_are_four_walks() -> None:
    assert [name.split(",")[0] for name in WALKS] == ["a `key`", "an entropy", "a flag", "a prompt"]


@pytest.mark.parametrize("walk", WALKS)
def test_each_file_of_a_walk_is_joined_to_one_before(walk: str) -> None:
    """One imports the other; but not where a trainer stands between them."""
    for part in WALKS[walk].split(", the trainer, "):
        files = re.findall(r"`([^`]+)`", part)
        assert len(files) > 1
        for place, path in enumerate(files[1:], start=1):
            # A section is found by the stage's folder; the files that it shows are what joins them.
            joined = any(
                module(path) in imported(before)
                or module(before) in imported(path)
                or ("stages" in Path(path).parts and Path(before).parent == Path(path).parent)
                for before in files[:place]
            )
            assert joined, f"{path} has nothing to do with what comes before"


def test_what_to_open_first_exists() -> None:
    opened = re.findall(r"^\d\. (.+):", TEXT[TEXT.index("## Files to open first") :], re.MULTILINE)[:7]
    files = [path for line in opened for path in re.findall(r"`([\w/]+\.py)`", line)]
    assert len(files) >= 7
    assert all((ROOT / path).is_file() for path in files)


@pytest.fixture
def tempering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """The overlay and the test of the mitigation that the guide shows, which is found beside the others."""
    text = TEXT[TEXT.index("## Adding a mitigation") : TEXT.index("## Adding a stage")]
    source, test = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (overlay,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "sample_tempering.py").write_text(source, encoding="utf-8")
    (tmp_path / "sample_tempering.yaml").write_text(overlay, encoding="utf-8")
    monkeypatch.setattr(memtrain.callbacks, "__path__", [*memtrain.callbacks.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield tmp_path / "sample_tempering.yaml", test
    sys.modules.pop("memtrain.callbacks.sample_tempering", None)
    vars(memtrain.callbacks).pop("sample_tempering", None)


def test_the_mitigation_of_the_guide_passes_the_test_of_the_guide(tempering: tuple[Path, str]) -> None:
    names: dict[str, object] = {}
    exec(compile(tempering[1], "CONTRIBUTING.md", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()  # type: ignore[operator]


def test_the_mitigation_of_the_guide_trains_by_its_overlay(
    tempering: tuple[Path, str],
    pipeline_folder: Path,
    write_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    cli.train(
        [
            *["fit", "--config", str(ROOT / "configs" / "tiny_baseline.yaml"), "--config", str(tempering[0])],
            *["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_steps", "2"],
            *["--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", "2"],
            *["--model.init_args.pretrained", str(pipeline_folder), "--data.init_args.path", str(write_folder(24))],
            *["--data.init_args.resolution", "16", "--data.init_args.batch_size", "4"],
            *["--data.init_args.heldout_fraction", "0.4"],
        ]
    )
    assert read_steps(tmp_path / "run" / "records").num_rows == 8
