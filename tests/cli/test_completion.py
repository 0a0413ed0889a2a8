"""The completion script, run by bash itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from memtrain.cli.completion import SHELLS, completion, script
from memtrain.cli.help.overview import SCREENS
from memtrain.files.shipped import config_names

from ..conftest import ROOT

ASK = """
ask() {
  COMP_WORDS=(memtrain "$@"); COMP_CWORD=$#; COMP_LINE="memtrain $*"; COMP_POINT=${#COMP_LINE}; COMPREPLY=()
  _shtab_memtrain
  echo "${COMPREPLY[@]}"
}
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "memtrain.bash"
    path.write_text(script("bash") + ASK)
    return path


def completed(path: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words behind `memtrain`."""
    command = ["bash", "-c", 'source "$0"; ask "$@"', str(path), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env={"PATH": "/usr/bin:/bin"})
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["me"], ["measure", "metrics"]),
        (["measure", "--copy"], ["--copy_measures", "--copy_detector"]),
        (["measure", "--dtype", ""], ["auto", "float32", "float16", "bfloat16"]),
        (["train", "--config", "sd15"], ["sd15", "sd15_lora"]),
        (["train", "--config", "callbacks/loss"], ["callbacks/loss_skipping"]),
        (["train", "--config", "configs/sdx"], ["configs/sdxl_lora.yaml"]),
        (["train", "--seed_everything", "3", "--trainer.max_s"], ["--trainer.max_steps"]),
        (["measure", "--help", ""], ["all"]),
        (["completion", ""], list(SHELLS)),
        (["scan", "docs/how_it"], ["docs/how_it_decides.md"]),
        (["measure", "--run", "bench"], ["benchmarks"]),
    ],
)
def test_bash_completes(bash_script: Path, words: list[str], expected: list[str]) -> None:
    assert completed(bash_script, *words) == expected


def test_every_command_and_option_is_offered(bash_script: Path) -> None:
    assert set(completed(bash_script, "")) == set(SCREENS)
    for name in ("train", "measure", "localize"):
        assert set(completed(bash_script, name, "--")) == {*SCREENS[name].names(), "--help"}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_holds_all_words_and_starts_no_python(shell: str) -> None:
    said = script(shell)
    for word in [*SCREENS, *config_names()]:
        assert word in said
    assert "python" not in said.lower()
    assert "$(memtrain" not in said


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        completion(["tcsh"])
    assert ended.value.code == 2
    assert "one of bash, zsh, fish" in capsys.readouterr().err


def test_the_script_is_made_without_torch() -> None:
    code = (
        "import sys; from memtrain.cli.command import main; main(['completion', 'bash']);"
        "sys.exit(bool({'torch', 'lightning', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    assert done.returncode == 0
