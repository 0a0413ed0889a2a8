"""docs/seeds.md: every command in it is one that is there, with options that are there."""

from __future__ import annotations

import re
import shlex

import pytest

from memtrain.cli.chatter import quiet
from memtrain.cli.evaluation import read_command
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "seeds.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"`memtrain ([^`]+)`", TEXT)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_read(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["evaluate.py"])
    quiet()  # as the command does, of a deprecation in what reads it
    stage = read_command(shlex.split(command))
    assert type(stage).__name__.lower() == command.split()[0]
    if "--statistics" not in command:  # such a file is looked for at once
        stage.check()


def test_settings_of_the_search_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate.py"])
    quiet()
    (without_theta,) = (words for words in COMMANDS if "initial_theta null" in words)
    assert read_command(shlex.split(without_theta)).search_settings.initial_theta is None  # type: ignore[attr-defined]
    (other_seed,) = (words for words in COMMANDS if "--settings.seeds" in words)
    found = read_command([*shlex.split(other_seed), "--published", "true"]).search_settings  # type: ignore[attr-defined]
    assert (found.seed, found.seeds, found.steps, found.literal_stop) == (1, 10, 50, True)


@pytest.mark.parametrize(
    "script",
    [
        *("1_compute_activations_statistics", "2_compute_pairwise_ssim", "3_detect_memorized_neurons"),
        *("4_generate_images", "compute_diversity", "compute_prompt_alignment", "compute_sscd_gen"),
        *("compute_sscd_orig", "text2img", "read_results", "detect", "plot"),
    ],
)
def test_each_script_has_a_command(script: str) -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("|") and f"{script}.py" in line.split("|")[1]]
    assert rows and all("`memtrain " in row.split("|")[2] for row in rows)
