"""docs/methods: every method of the open folders has a card there, which says what the code's own card says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "methods"
FOLDERS = {
    "signals": ("signals", {"Signal", "FittedSignal"}),
    "callbacks": ("training", {"MitigationCallback"}),
    "detectors": ("detectors", {"Detector"}),
    "inference": ("inference", {"InferenceMitigation"}),
    "evaluation/measures/copying": ("copying", {"CopyMeasure", "Vision"}),
    "families/descriptors": ("families", {"Descriptor"}),
}
"""Open folder below `memtrain`: the page of its cards, and the classes that its methods derive from."""
BASES = {"base.py", "mitigation.py"}
"""Files with what a method is, not with a method."""
HEADING = re.compile(r"^(#{2,3}) `(\w+)`.*$", re.MULTILINE)
PARTS = ("Source", "Cost", "Cannot")


def methods(folder: str, bases: set[str]) -> Iterator[str]:
    """Names of the public classes of a folder that derive from one of these."""
    for path in sorted((ROOT / "memtrain" / folder).glob("*.py")):
        if path.name in BASES:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            if bases & {base.id for base in node.bases if isinstance(base, ast.Name)}:
                yield node.name


def cards(page: Path) -> dict[str, str]:
    """Text of each card by the name in its heading."""
    text = page.read_text(encoding="utf-8")
    found = list(HEADING.finditer(text))
    ends = [re.search(r"^#{1,3} ", text[one.end() :], re.MULTILINE) for one in found]
    return {
        one[2]: text[one.end() : one.end() + end.start() if end else len(text)]
        for one, end in zip(found, ends, strict=True)
    }


CASES = [
    pytest.param(page, name, id=f"{folder}-{name}")
    for folder, (page, bases) in FOLDERS.items()
    for name in methods(folder, bases)
]


def test_the_walk_finds_methods_in_every_folder() -> None:
    fewest = {"signals": 4, "callbacks": 10, "detectors": 9, "inference": 1}
    counts = {folder: len(list(methods(folder, bases))) for folder, (_, bases) in FOLDERS.items()}
    assert all(counts[folder] >= least for folder, least in fewest.items())
    assert counts["evaluation/measures/copying"] >= 10
    assert counts["families/descriptors"] >= 4


@pytest.mark.parametrize(("page", "name"), CASES)
def test_every_method_has_a_card_with_source_cost_and_limits(page: str, name: str) -> None:
    found = cards(PAGES / f"{page}.md")
    assert name in found, f"docs/methods/{page}.md has no card with the heading `{name}`"
    missing = [part for part in PARTS if not re.search(rf"\*\*{part}:\*\* \S", found[name])]
    assert not missing, f"the card of {name} does not say {missing}"


def test_every_callback_that_has_an_overlay_is_named() -> None:
    page = (PAGES / "training.md").read_text(encoding="utf-8")
    for overlay in sorted((ROOT / "configs" / "callbacks").glob("*.yaml")):
        name = "".join(part.capitalize() for part in overlay.stem.split("_"))
        assert f"`{name}`" in page


@pytest.mark.parametrize("folder", ["detectors", "objective", "lora", "inference", "localize", "signals", "callbacks"])
def test_overlays_that_cards_name_are_there(folder: str) -> None:
    named = {
        name
        for page in PAGES.glob("*.md")
        for name in re.findall(rf"\b{folder}/(\w+)`", page.read_text(encoding="utf-8"))
    }
    there = {path.stem for path in (ROOT / "configs" / folder).glob("*.yaml")}
    assert named <= there


def test_a_detector_that_is_high_when_memorized_is_said_to_be() -> None:
    """The direction on the page is that of the docstring."""
    for name, card in cards(PAGES / "detectors.md").items():
        module = next(
            path
            for path in (ROOT / "memtrain" / "detectors").glob("*.py")
            if f"class {name}(" in path.read_text(encoding="utf-8")
        )
        higher = "Direction: higher" in module.read_text(encoding="utf-8")
        said = re.search(r"(High|\*\*Low\*\*)\s+means\s+memorized", card)
        assert said is not None and (said[1] == "High") is higher, name
