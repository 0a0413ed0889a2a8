"""Versions agree wherever they are written: floors in pyproject.toml, constraints.txt, and the hashes of its files."""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import memtrain

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


def test_version_changelog_and_citation_name_the_same_release() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    assert releases[0][0] == memtrain.__version__
    assert releases == sorted(releases, key=lambda one: Version(one[0]), reverse=True)
    assert [date for _, date in releases] == sorted((date for _, date in releases), reverse=True)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], str(citation["date-released"])) == releases[0]


def test_the_citation_has_the_fields_that_its_format_requires() -> None:
    """`bash .ci/supply_chain citation` compares it with the schema of the format."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["type"] == "software"
    assert all(set(author) <= {"name", "family-names", "given-names", "orcid"} for author in citation["authors"])
    assert citation["license"] in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]


def test_every_data_set_and_licence_is_named_for_a_wheel() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["license-files"]
    licences = {path for pattern in named for path in ROOT.glob(pattern)}
    assert licences == {ROOT / "LICENSE", ROOT / "assets/NOTICE", *(ROOT / "assets").glob("LICENSE*")}
    notice = (ROOT / "assets/NOTICE").read_text(encoding="utf-8")
    assert all(path.name in notice for path in [*(ROOT / "assets").glob("*.tar"), *(ROOT / "assets").glob("LICENSE*")])
