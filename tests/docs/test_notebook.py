"""examples/memorization.ipynb: what is committed is whole and small, and the notebook runs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.conftest import ROOT

PATH = ROOT / "examples" / "memorization.ipynb"
PLOTS = 5
LARGEST = 1_000_000
"""Bytes of the committed notebook at most."""


def notebook() -> Any:
    """The committed notebook."""
    return nbformat.read(PATH, as_version=4)


def outputs(found: Any) -> list[Any]:
    """All outputs of a notebook."""
    return [output for cell in found.cells if cell.cell_type == "code" for output in cell.outputs]


def text_of(found: Any) -> str:
    """What a notebook prints."""
    return "\n".join(output.text for output in outputs(found) if output.output_type == "stream")


def plots_of(found: Any) -> int:
    """The number of pictures among the outputs."""
    return sum("image/png" in output.get("data", {}) for output in outputs(found))


def check_story(found: Any) -> None:
    """The results that the text of the notebook relies on."""
    assert plots_of(found) == PLOTS
    printed = text_of(found)
    assert "'pictures_with_several_files': 4, 'files_of_these': 164" in printed
    flagged = re.findall(r"^\S+: (\d+) files, flagged at step (\d+) \(repeated\)", printed, re.MULTILINE)
    trained = re.search(r"(\d) of the 4 repeated pictures are trained on", printed)
    assert trained is not None
    assert len(flagged) >= 2, printed
    assert {count for count, _ in flagged} == {"41"}
    plain, protected = (
        [float(value) for value in re.findall(r"[\d.]+", line)]
        for line in re.findall(r"mean difference from the repeated pictures \[(.+)\]", printed)
    )
    assert len(plain) == len(protected) == int(trained[1])
    assert sum(plain) < sum(protected)
    before, after = re.findall(r"from the training picture, (?:plain|masked): +([\d.]+)", printed)
    assert float(before) < float(after)


def test_what_is_committed_has_its_outputs() -> None:
    found = notebook()
    nbformat.validate(found)
    assert PATH.stat().st_size < LARGEST
    code = [cell for cell in found.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(output.output_type != "error" for output in outputs(found))
    check_story(found)


def test_nothing_in_it_tells_of_a_machine() -> None:
    text = PATH.read_text(encoding="utf-8")
    assert not re.findall(r"/(?:home|root|tmp|work|Users|usr|site-packages)/[^\"\s]*", text)
    assert "stderr" not in {output.get("name") for output in outputs(notebook())}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    (tmp_path / "examples").mkdir()
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found = notebook()
    for output_cell in found.cells:
        if output_cell.cell_type == "code":
            output_cell.outputs = []
    NotebookClient(
        found, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "examples")}}
    ).execute()
    check_story(found)
