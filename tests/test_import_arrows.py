"""Which package may import which: the arrows of CONTRIBUTING.md, read from the source with `ast`."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .conftest import ROOT

FREE = {"errors", "files", "engines", ""}
"""Importable by everything; "" is `memtrain/__init__.py`."""

ARROWS = {
    "": set(),
    "errors": set(),
    "files": set(),
    "engines": set(),
    "functional": set(),
    "models": {"functional"},
    "records": set(),
    "families": {"functional", "records"},
    "signals": {"functional", "models"},
    "evidence": {"functional", "models", "signals", "families", "records"},
    "monitoring": {"evidence", "signals", "families", "models", "functional", "records"},
    "data": {"functional", "families", "records"},
    "training": {"models", "functional"},
    "callbacks": {
        *("monitoring", "evidence", "signals", "families", "models", "functional", "records", "data"),
        "evaluation.sampling",
    },
    "guard": {"monitoring", "evidence", "signals", "families", "models", "functional", "records"},
    "detectors": {"functional", "models"},
    "localization": {"functional", "models", "records"},
    "inference": {"functional", "models"},
    "evaluation": set(),
    "evaluation.sampling": {"detectors", "inference", "families", "models", "functional", "records"},
    "evaluation.measures": {"detectors", "inference", "families", "models", "functional", "records"},
    "evaluation.report": {"records"},
    "evaluation.stages": {
        *("evaluation", "evaluation.sampling", "evaluation.measures", "evaluation.report"),
        *("detectors", "localization", "inference", "families", "models", "functional", "records"),
    },
    "cli": None,
    "__main__": {"cli"},
}
"""Package or module of memtrain -> what it may import of memtrain; None: everything."""

LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
WITH_LIGHTNING = (
    *("memtrain.training", "memtrain.callbacks", "memtrain.cli"),
    *("memtrain.data.module", "memtrain.data.visited_images", "memtrain.data.masked_images"),
    "memtrain.data.filled_images",
    "memtrain.data.streamed",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """Full names of everything that `source` imports, wherever the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - 1 if is_package else node.level
                parents = module.split(".")[: len(module.split(".")) - up]
                base = ".".join([*parents, *([base] if base else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


PARTS = {"evaluation"}
"""Packages whose sub-packages have arrows of their own."""
STAGES = "memtrain.evaluation.stages"
STAGE_NAMES = {path.parent.name for path in (ROOT / "memtrain/evaluation/stages").glob("*/stage.py")}


def unit(name: str) -> str:
    """`memtrain.data.source` -> `data`, `memtrain.evaluation.report.page` -> `evaluation.report`."""
    parts = [*name.split("."), ""]
    sub = parts[1] in PARTS and (ROOT / "memtrain" / parts[1] / parts[2]).is_dir() and parts[2]
    return f"{parts[1]}.{parts[2]}" if sub else parts[1]


def stage_of(name: str) -> str | None:
    """`memtrain.evaluation.stages.detect.detect` -> `detect`; None for what all stages share."""
    parts = name.removeprefix(f"{STAGES}.").split(".")
    return parts[0] if name.startswith(f"{STAGES}.") and parts[0] in STAGE_NAMES else None


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What `source`, as the module of this name, imports against the arrows."""
    own = unit(module)
    if own not in ARROWS:
        return [f"{module}: {own!r} has no arrows; add it to CONTRIBUTING.md and here"]
    found = []
    for name in sorted(imported(source, module, is_package=is_package)):
        top = name.split(".")[0]
        if top == "memtrain":
            target = unit(name)
            if target.startswith("__"):
                target = ""
            allowed = ARROWS[own]
            other = stage_of(name)
            if allowed is not None and target not in allowed | FREE | {own}:
                found.append(f"{module} imports {name}")
            elif own == "evaluation.stages" and other is not None and other != stage_of(module):
                found.append(f"{module} imports {name}: no stage imports another, and what they share imports none")
        elif top in LIGHTNING and not module.startswith(WITH_LIGHTNING):
            found.append(f"{module} imports {name}: Lightning stays at the edge")
        elif own in ("monitoring", "guard") and top == "accelerate":
            found.append(f"{module} imports {name}: the engine knows no trainer")
        elif own == "functional" and top not in {"torch", "torchmetrics"} | sys.stdlib_module_names:
            found.append(f"{module} imports {name}: functional imports torch and torchmetrics only")
    return found


FILES = sorted((ROOT / "memtrain").rglob("*.py"))


def test_no_module_imports_against_the_arrows():
    found = []
    for path in FILES:
        found += violations(path.read_text(encoding="utf-8"), module_name(path), is_package=path.stem == "__init__")
    assert len(FILES) > 20
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("memtrain.functional.x", "import numpy"),
        ("memtrain.functional.x", "from memtrain.models import probe"),
        ("memtrain.signals.x", "from memtrain import callbacks"),
        ("memtrain.signals.x", "def f():\n    from ..callbacks import monitor"),
        ("memtrain.evaluation.x", "import memtrain.training.text_to_image"),
        ("memtrain.evaluation.stages.x", "import memtrain.training.text_to_image"),
        ("memtrain.evaluation.stages.x", "from lightning.pytorch import Trainer"),
        ("memtrain.evaluation.sampling.x", "from memtrain.localization.locate import locate"),
        ("memtrain.evaluation.measures.x", "from memtrain.evaluation.sampling.generate import generate"),
        ("memtrain.evaluation.report.x", "from memtrain.evaluation.stages.base import Stage"),
        ("memtrain.evaluation.report.x", "from memtrain.functional.ranking import auroc"),
        ("memtrain.evaluation.stages.detect.x", "from memtrain.evaluation.stages.localize.stage import Localize"),
        ("memtrain.evaluation.stages.detect.x", "def f():\n    from ..mitigate import mitigate"),
        ("memtrain.evaluation.stages.base", "from memtrain.evaluation.stages.detect.stage import Detect"),
        ("memtrain.models.x", "import pytorch_lightning"),
        ("memtrain.monitoring.x", "from accelerate import Accelerator"),
        ("memtrain.guard", "def f():\n    import lightning.fabric"),
        ("memtrain.monitoring.x", "from memtrain.callbacks.monitor import MemorizationMonitor"),
        ("memtrain.data.source", "import lightning"),
        ("memtrain.records", "from memtrain.signals.base import Signal"),
        ("memtrain.newcomer", "import torch"),
    ],
)
def test_checker_catches(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("memtrain.functional.x", "import math\nfrom torch import Tensor\nfrom memtrain.functional.y import z"),
        ("memtrain.signals.x", "from memtrain.errors import DataError\nfrom . import base\nfrom ..models import probe"),
        ("memtrain.data.module", "from lightning.pytorch import LightningDataModule"),
        (
            "memtrain.evaluation.stages.detect.x",
            "from memtrain.evaluation.stages.detect.stage import Detect\nfrom ..prompts import Prompt",
        ),
        ("memtrain.cli", "import lightning, memtrain.callbacks.monitor\nfrom memtrain import __version__"),
    ],
)
def test_checker_lets_pass(module, source):
    assert violations(source, module) == []


def test_contributing_shows_the_same_arrows():
    rows = re.findall(r"^\| (`[\w.]+`[^|]*) \| ([^|]*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    shown = {}
    for left, right in rows:
        allowed = None if right == "everything" else set(re.findall(r"`([\w.]+)`", right))
        shown |= dict.fromkeys(re.findall(r"`([\w.]+)`", left), allowed)
    assert shown == {own: allowed for own, allowed in ARROWS.items() if own not in FREE}


def test_everything_but_the_edge_runs_without_lightning(write_folder):
    names = [name for name in map(module_name, FILES) if not name.startswith(WITH_LIGHTNING)]
    program = f"""
import importlib, sys
for blocked in {sorted(LIGHTNING)}:
    sys.modules[blocked] = None
for name in {names}:
    importlib.import_module(name)
from memtrain.data.source import open_source
print(len(open_source({str(write_folder(3))!r})))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["3"]


def test_every_imported_package_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["quality"], *extras["quantization"]]
    declared = {re.match(r"[\w-]+", line)[0].lower() for line in lines}
    distributions = importlib.metadata.packages_distributions()
    missing = set()
    for path in FILES:
        names = imported(path.read_text(encoding="utf-8"), module_name(path), is_package=path.stem == "__init__")
        for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"memtrain"}:
            if not {name.lower() for name in distributions.get(top, [top])} & declared:
                missing.add(f"{module_name(path)} imports {top}")
    assert not missing, sorted(missing)
