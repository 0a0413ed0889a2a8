"""The benchmark for a GPU, in its smoke mode; and that no part takes another along."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.conftest import ROOT


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    # The folder `tests/localization` has the name of a script.
    monkeypatch.delitem(sys.modules, "localization", raising=False)
    return importlib.import_module


@pytest.fixture
def part(load: Any, tmp_path: Path) -> Any:
    return load("gpu_shapes").Part(tmp_path / "figures.json", tmp_path, smoke=True)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "name",
    [
        "step",
        "guard",
        "sampling",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("overhead", "conformance")),
    ],
)
def test_parts_that_run_in_one_process(load: Any, part: Any, name: str) -> None:
    module = load({"step": "gpu_training", "guard": "gpu_guard"}.get(name, "gpu_model"))
    with torch.random.fork_rng():
        getattr(module, name)(part)
    figures = json.loads(part.file.read_text())
    assert not part.failures()
    assert [one for one in figures.values() if isinstance(one, dict) and one.get("passed") is False] == []
    if name == "step":
        assert all(figures[way]["losses_finite"] for way in ("with_monitor", "without_monitor"))
    elif name == "guard":
        assert all(
            figures[way]["losses_finite"] and figures[way]["records"] for way in ("paired_every_4", "paired_every_1")
        )
    elif name == "conformance":
        assert sum("float" in case for case in figures) == 15
        assert figures["gate_unet"]["exact"]
    elif name == "sampling":
        assert all(figures[kind]["scores_equal"] for kind in ("float32", "bfloat16", "float16"))
    else:
        assert figures["sd15_checkpointing"]["probe_ratio_median"] > 0


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.slow
def test_a_part_by_command(tmp_path: Path) -> None:
    json_file, markdown = tmp_path / "a.json", tmp_path / "a.md"
    done = command(
        *("--smoke", "--parts", "[nemo]", "--folder", str(tmp_path / "folder")),
        *("--json", str(json_file), "--markdown", str(markdown)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(json_file.read_text())
    figures = results["parts"]["nemo"]["figures"]
    assert figures["as published"]["same_neurons"] == figures["prompts"] == 1
    assert results["environment"]["torch"] == torch.__version__
    assert "| nemo | ok |" in markdown.read_text()


@pytest.mark.slow
def test_the_default_run_by_command(tmp_path: Path) -> None:
    json_file, markdown = tmp_path / "a.json", tmp_path / "a.md"
    done = command(
        *("--smoke", "--parts", "[default_run]", "--folder", str(tmp_path / "folder")),
        *("--json", str(json_file), "--markdown", str(markdown)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(json_file.read_text())
    figures = results["parts"]["default_run"]["figures"]
    assert figures["steps"] == 4
    assert figures["losses_finite"]
    assert figures["groups"] == {"planted": 1, "unique": 1, "heldout": 1}
    assert results["environment"]["torch"] == torch.__version__
    assert "| default_run | ok |" in markdown.read_text()


@pytest.mark.slow
def test_the_whole_smoke_run(tmp_path: Path) -> None:
    done = command("--smoke", "--folder", str(tmp_path), "--json", str(tmp_path / "a.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "a.json").read_text())["parts"]
    skipped = {name for name, part in parts.items() if part["status"] == "skipped"}
    assert skipped == {"training_sd15", "training_sdxl"}, "what is compared with others' scripts needs these"
    assert [part["status"] for name, part in parts.items() if name not in skipped] == ["ok"] * 8


@pytest.fixture
def gpu(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command, with parts that are a few lines each."""
    module: ModuleType = load("gpu")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gpu_part.py").write_text(
        textwrap.dedent("""
            import os, sys, time
            name, file = sys.argv[1:3]
            open(file, "w").write('{"before": 1.5}')
            if name == "crashes":
                os.abort()
            if name == "hangs":
                time.sleep(600)
            if name == "fails":
                raise RuntimeError("the reason")
        """)
    )
    monkeypatch.setattr(module, "ROOT", tmp_path)
    parts = {"fails": (0, 60), "hangs": (0, 2), "crashes": (0, 60), "large": (10**6, 10**6), "works": (0, 60)}
    monkeypatch.setattr(module, "PARTS", parts)
    return module


def test_a_part_survives_the_failure_of_others(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "describe", lambda device: {"device": device})
    options: dict[str, Any] = {"json": str(tmp_path / "a.json"), "folder": str(tmp_path / "folder")}
    with pytest.raises(SystemExit) as ended:
        gpu.main(**options)
    assert ended.value.code == 1
    parts = json.loads((tmp_path / "a.json").read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "fails": "failed",
        "hangs": "timed out",
        "crashes": "failed",
        "large": "skipped",
        "works": "ok",
    }
    assert "the reason" in parts["fails"]["error"]
    assert parts["hangs"]["figures"] == parts["crashes"]["figures"] == {"before": 1.5}, "kept from before the end"
    assert "it needs 1000000" in parts["large"]["error"]

    gpu.main(parts=["works"], **options)
    assert len(json.loads((tmp_path / "a.json").read_text())["parts"]) == 5, "earlier parts stay in the file"
    monkeypatch.setattr(gpu, "describe", lambda device: {"device": "another"})
    gpu.main(parts=["works"], **options)
    assert list(json.loads((tmp_path / "a.json").read_text())["parts"]) == ["works"]
    capsys.readouterr()


def test_what_is_missing_is_named(gpu: ModuleType, load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU that torch can use"):
        gpu.main(folder=str(tmp_path))
    with pytest.raises(SystemExit, match="No part is called 'nothing'"):
        gpu.main(parts=["nothing"], smoke=True, folder=str(tmp_path))
    packages = load("gpu_packages")
    assert packages.lacking({"torch": "torch"}) == []
    missing = packages.lacking({"no_such_a": "webdataset", "torch": "torch", "no_such_b": "PyYAML"})
    assert [line.split(" ")[0] for line in missing] == ["webdataset==1.0.2", "PyYAML==6.0.3"]
