"""A wheel in an environment of its own works in an empty folder, without the clone."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import memtrain
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SOURCES = ("memtrain", "configs", "assets", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


def environment() -> dict[str, str]:
    """The variables of a user's shell: nothing of the clone, and no network."""
    left = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return left | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this clone, built from a copy, because a build writes beside its sources."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", "made", "."], cwd=folder, check=True, capture_output=True)
    (made,) = (folder / "made").glob("*.whl")
    return made


def installed(wheel: Path, folder: Path) -> Path:
    """The `memtrain` script of a fresh environment, which sees the packages of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, capture_output=True, env=environment())
    (packages,) = folder.glob("lib/python*/site-packages")
    # The lines of a .pth are folders; .pth files in these, such as that of an editable install, are not read.
    (packages / "of_the_tests.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin" / "memtrain"


@pytest.fixture(scope="module")
def script(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(wheel, tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


def run(script: Path, folder: Path, *words: str) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(
        [script, *words], cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_a_wheel_holds_what_a_run_needs_with_its_licences_and_no_scripts(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {name.removeprefix("memtrain/shipped/") for name in names if name.startswith("memtrain/shipped/")}
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert {name for name in shipped if name.startswith("configs/")} == configs
    assert {"assets/NOTICE", "assets/clipart-pd.tar", "assets/tiny-sd/model_index.json"} <= shipped
    assert not [name for name in shipped if name.endswith(".py")]
    licences = {name.partition("/licenses/")[2] for name in names if "/licenses/" in name}
    texts = {str(path.relative_to(ROOT)) for path in (ROOT / "assets").glob("LICENSE*")}
    assert licences == {"LICENSE", "assets/NOTICE", *texts}
    assert "tests" not in {name.partition("/")[0] for name in names}


def test_it_says_its_version_and_plans_by_name(script: Path, empty: Path) -> None:
    assert run(script, empty, "--version").strip() == f"memtrain {memtrain.__version__}"
    said = run(script, empty, "plan", "--config", "tiny", "--json", "plan.json")
    assert "No problem was found" in said
    assert json.loads((empty / "plan.json").read_text())["problems"] == []
    assert "steps: 5" in run(script, empty, "plan", "--config", "tiny_baseline", "--trainer.max_steps", "5")


def test_a_run_goes_on_from_another_folder_after_an_upgrade(
    script: Path, empty: Path, wheel: Path, tmp_path: Path
) -> None:
    words = ["train", "--config", "tiny", "--trainer.max_steps", "4", "--trainer.default_root_dir", "mine"]
    words += ["--data.init_args.path", "assets/emoji-heldout.tar", "--data.init_args.families", "off"]
    run(script, empty, *words, "--trainer.enable_progress_bar", "false")
    config = yaml.safe_load((empty / "mine" / "config.yaml").read_text())
    assert config["model"]["init_args"]["pretrained"] == "assets/tiny-sd"
    assert config["data"]["init_args"]["path"] == "assets/emoji-heldout.tar"
    card = (empty / "mine" / "pipeline" / "README.md").read_text()
    assert str(script.parent) not in card
    assert "base_model:" not in card
    elsewhere = tmp_path / "elsewhere"
    shutil.move(empty / "mine", elsewhere / "moved")
    # `reference_folder` of the configuration is relative to the current folder, as all paths of a user are.
    shutil.move(empty / "runs", elsewhere / "runs")
    later = installed(wheel, tmp_path / "upgraded")
    words = ["train", "--config", "moved/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "6"]
    run(later, elsewhere, *words, "--trainer.default_root_dir", "moved")
    assert (elsewhere / "moved" / ".training_ended").read_text().strip() == "6"


def test_prompts_of_the_shipped_model_are_scored(script: Path, empty: Path) -> None:
    (empty / "prompts.txt").write_text("a red apple\n")
    words = ["--prompts", "prompts.txt", "--images_per_prompt", "1", "--steps", "2", "--output", "scored"]
    run(script, empty, "detect", "--model", "assets/tiny-sd", *words, "--null", "none")
    assert json.loads((empty / "scored" / "detection.json").read_text())["model"] == "assets/tiny-sd"


def test_the_shortest_demo_ends_with_a_report(script: Path, empty: Path) -> None:
    said = run(script, empty, "demo", "--fast", "--steps", "2", "--output", "shown")
    assert "Report: shown/evaluation/report.html" in said.splitlines()
    assert "short look" in said.splitlines()[-1]
    assert "assets/" not in {path.name for path in empty.iterdir()}
    report = (empty / "shown" / "evaluation" / "report.html").read_text()
    assert "May it be released?" in report
