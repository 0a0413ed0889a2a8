"""Versions agree wherever they are written: floors in pyproject.toml, constraints.txt, and the hashes of its files."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from .conftest import ROOT


def pins(name: str) -> dict[str, str]:
    """Package to version, of a file of pins; the local part of a version, such as `+cpu`, left out."""
    lines = (line.split("#")[0].split() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    named = (words[0].partition("==") for words in lines if words)
    return {canonicalize_name(package): version.partition("+")[0] for package, _, version in named}


def dependencies() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(one) for one in project["dependencies"]]


def test_every_constrained_package_has_the_hash_of_its_file() -> None:
    assert pins("constraints.hashes.txt") == pins("constraints.txt")
    lines = (ROOT / "constraints.hashes.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"\S+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("requirement", dependencies(), ids=lambda one: one.name)
def test_every_dependency_has_a_floor_that_the_tested_version_is_above(requirement: Requirement) -> None:
    floors = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
    assert floors, "a lower bound, which `bash .ci/supply_chain floors` tests"
    assert Version(pins("constraints.txt")[canonicalize_name(requirement.name)]) >= max(floors)
