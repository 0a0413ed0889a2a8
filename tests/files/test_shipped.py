"""Shipped configurations, data and models are found by name from any folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import memtrain.files.shipped as shipped
from memtrain.cli.command_parser import CarefulParser, check_config
from memtrain.data.source import open_source
from memtrain.errors import ConfigurationError, DataError
from memtrain.files.shipped import at_hand, config_file, config_names, shipped_folder
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without configurations and data as the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("tiny", "configs/tiny.yaml"),
        ("sd15_lora", "configs/sd15_lora.yaml"),
        ("callbacks/loss_skipping", "configs/callbacks/loss_skipping.yaml"),
        ("configs/sd15_lora.yaml", "configs/sd15_lora.yaml"),
        ("configs/callbacks/loss_skipping.yaml", "configs/callbacks/loss_skipping.yaml"),
    ],
)
def test_a_shipped_configuration_is_found_by_either_name(name: str, file: str) -> None:
    assert config_file(name) == ROOT / file


@pytest.mark.parametrize("name", ["tiny", "configs/tiny.yaml"])
def test_a_file_of_the_current_folder_wins(name: str, elsewhere: Path) -> None:
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "tiny.yaml").write_text("seed_everything: 1\n")
    assert config_file(name) == Path("configs/tiny.yaml")


def test_a_file_of_exactly_that_name_wins_and_a_folder_does_not(elsewhere: Path) -> None:
    (elsewhere / "few").mkdir()
    (elsewhere / "tiny").write_text("seed_everything: 1\n")
    assert config_file("tiny") == Path("tiny")
    assert config_file("few") == ROOT / "configs/few.yaml"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("tini", "did you mean tiny?"),
        ("configs/sd15_lorra.yaml", "did you mean sd15_lora?"),
        ("callbacks/los_skipping", "did you mean callbacks/loss_skipping?"),
        ("mien.yaml", "did you mean mine.yaml?"),
        ("qqqqqqqq", "check the path"),
        ("tiny\0", "did you mean tiny?"),
        ("tiny.yaml", "did you mean tiny?"),
        ("SD15_LORA", "did you mean sd15_lora?"),
        ("sd3", "did you mean sd3_lora?"),
        ("configs\\tiny.yaml", "did you mean tiny?"),
        ("../configs/tiny.yaml", "did you mean tiny?"),
        ("./callbacks/Loss_skipping.yml", "did you mean callbacks/loss_skipping?"),
    ],
)
def test_what_is_not_there_is_refused_with_the_names_that_are(name: str, near: str) -> None:
    for own in ("mine.yaml", "sana.yaml"):
        Path(own).write_text("seed_everything: 1\n")
    with pytest.raises(ConfigurationError) as refused:
        config_file(name)
    assert near in refused.value.remedy
    assert "sd15_lora, " in refused.value.expected
    assert "callbacks/..." in refused.value.expected


def test_a_group_is_refused_with_its_configurations() -> None:
    with pytest.raises(ConfigurationError, match="'callbacks' is a group of configurations") as refused:
        config_file("callbacks")
    assert "callbacks/loss_skipping" in refused.value.expected


def test_a_file_that_is_no_configuration_and_hides_one_is_said_to_do_so() -> None:
    Path("tiny").write_text("no mapping\n")
    with pytest.raises(ConfigurationError, match="hides the shipped configuration tiny") as refused:
        check_config("tiny")
    assert "--config configs/tiny.yaml" in refused.value.remedy


def test_every_configuration_of_the_clone_has_a_name() -> None:
    names = config_names()
    assert {config_file(name) for name in names} == set((ROOT / "configs").rglob("*.yaml"))
    assert len(names) > 30


def test_shipped_data_and_models_are_found_from_any_folder() -> None:
    assert at_hand("assets/tiny-sd") == str(ROOT / "assets/tiny-sd")
    assert len(open_source("assets/emoji-heldout.tar")) == 214


def test_own_data_of_that_name_win(elsewhere: Path) -> None:
    (elsewhere / "assets" / "tiny-sd").mkdir(parents=True)
    assert at_hand("assets/tiny-sd") == "assets/tiny-sd"
    assert at_hand("assets/clipart-pd.tar") == str(ROOT / "assets/clipart-pd.tar")


@pytest.mark.parametrize(
    "path",
    ["assets/../pyproject.toml", "assets", "assets/none.tar", "owner/name", "pipe:cat x", "assets/" + 999 * "a"],
)
def test_other_paths_stay_as_they_are(path: str) -> None:
    assert at_hand(path) == path


def test_data_that_are_not_shipped_are_refused_by_the_name_given() -> None:
    with pytest.raises(DataError, match=r"'assets/none\.tar' does not exist"):
        open_source("assets/none.tar")


def test_an_installed_package_looks_into_its_own_folder(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Some packages leave a folder `configs` beside memtrain in site-packages.
    (elsewhere / "site" / "configs").mkdir(parents=True)
    module = elsewhere / "site" / "memtrain" / "files" / "shipped.py"
    shutil.copytree(ROOT / "configs" / "data", module.parents[1] / "shipped" / "configs" / "data")
    monkeypatch.setattr(shipped, "__file__", str(module))
    assert shipped_folder() == module.parents[1] / "shipped"
    assert config_file("data/planted").is_relative_to(module.parents[1])


@pytest.mark.parametrize("words", [["--config", "signals"], ["--config=signals"], ["-c", "signals"], ["-c=signals"]])
def test_every_command_takes_names_in_every_form(
    words: list[str], monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    (elsewhere / "clone" / "configs").mkdir(parents=True)
    (elsewhere / "clone" / "configs" / "signals.yaml").write_text("steps: 7\n")
    monkeypatch.setattr(shipped, "shipped_folder", lambda: elsewhere / "clone")
    parser = CarefulParser()
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--name", type=str, default="")
    assert parser.parse_args([*words, "--name", "signals"]).steps == 7
    assert parser.parse_args([*words, "--config", "steps: 8"]).steps == 8
