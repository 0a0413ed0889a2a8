"""Results fit their published schema, and what does not is kept under another name."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import memtrain
from memtrain.errors import RecordError
from memtrain.evaluation.stages.results_file import problems_of, schema_of, write_results
from tests.conftest import ROOT
from tests.evaluation.report.made_results import full_results

SCHEMAS = sorted((Path(memtrain.__file__).parent / "evaluation" / "schemas").glob("*.schema.json"))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_every_schema_is_one(path: Path) -> None:
    schema = schema_of(path.name.removesuffix(".schema.json") + ".json")
    Draft202012Validator.check_schema(schema)
    assert {"schema_version", "created", "versions"} <= set(schema["required"])


def test_results_of_every_version_fit() -> None:
    """Of the newest one, and of the first, which knew less."""
    new = full_results()
    assert problems_of(new, "results.json") == []
    old = {name: value for name, value in new.items() if name not in ("copying", "counts", "curve", "controls")}
    old["verdict"] = {"level": "none", "text": "nothing"}
    old["quality"] = {"heldout_loss": 0.1}
    assert problems_of({**old, "schema_version": 1}, "results.json") == []
    assert problems_of({**new, "something_new": [1]}, "results.json") == [], "other keys are let be"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema_version",), "3"),
        (("verdict", "level"), None),
        (("replication", "threshold"), "0.6"),
        (("replication", "groups", "planted", "share"), 1.5),
        (("replication", "groups", "planted", "n"), 4.5),
        (("copying", "measures", "sscd", "sees"), "yes"),
        (("counts", "pictures", "interval"), [0.1]),
        (("curve", 0, "step"), "ten"),
        (("quality", "kid", "value"), "low"),
        (("sampling", "seeds"), []),
    ],
)
def test_a_wrong_type_is_named_with_its_place(place: tuple[Any, ...], value: object) -> None:
    content = copy.deepcopy(full_results())
    inside: Any = content
    for step in place[:-1]:
        inside = inside[step]
    inside[place[-1]] = value
    found = problems_of(content, "results.json")
    assert found and any(one.startswith(".".join(map(str, place[:2]))) for one in found), found


def test_what_does_not_fit_is_kept_and_not_called_by_its_name(tmp_path: Path) -> None:
    good = full_results()
    assert write_results(good, tmp_path / "results.json") == good
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    bad = {**good, "verdict": {"level": "none"}}
    with pytest.raises(RecordError, match=r"verdict: 'text' is a required property[\s\S]*results\.invalid\.json"):
        write_results(bad, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == good, "the earlier one stays"
    assert json.loads((tmp_path / "results.invalid.json").read_text()) == bad


@pytest.mark.slow
def test_the_wheel_holds_the_schemas(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"memtrain/evaluation/schemas/{path.name}" for path in SCHEMAS} <= names
    assert "memtrain/evaluation/report/page.css.j2" in names
