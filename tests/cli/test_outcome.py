"""`--quiet` prints errors only; `--json` ends with one JSON object on standard output."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memtrain import cli
from memtrain.cli import command, evaluation_parts
from memtrain.cli.outcome import QUIET_CHILD, end, printing, taken_output, tell
from memtrain.errors import ConfigurationError
from memtrain.files.progress import progress_is_off

from ..conftest import ROOT


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The object that is all of standard output, and what standard error holds."""
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    return json.loads(line), said.err


@pytest.fixture
def folder(write_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_folder(5)


def test_a_scan_tells_what_it_found_and_where(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.train(["scan", str(folder), "--json"])
    told, said = printed(capsys)
    assert (told["command"], told["exit_status"], told["error"]) == ("scan", 0, None)
    assert (told["found"]["images"], told["folder"]) == (5, "runs/scan")
    assert "runs/scan/report.html" in told["files"]
    assert "Scan of" in said


def test_a_quiet_scan_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cli.train(["scan", "--quiet", str(folder)])
    assert tuple(capfd.readouterr()) == ("", "")
    assert Path("runs/scan/scan.json").is_file()


def test_both_together_print_the_object_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.train(["scan", str(folder), "--quiet", "--json"])
    told, said = printed(capsys)
    assert (told["exit_status"], said) == (0, "")


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
@pytest.mark.parametrize(
    ("words", "status", "found"),
    [
        (["report", "nowhere"], 1, "nowhere does not exist"),
        (["measure", "--steps", "many"], 2, "steps is 'many'"),
        (["compare", "one"], 1, "1 folder(s) to compare"),
    ],
)
def test_an_error_is_told_with_its_remedy_and_printed(
    words: list[str], status: int, found: str, quiet: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.evaluate([*words, "--json", *quiet])
    told, said = printed(capsys)
    assert told["exit_status"] == status
    assert found in told["error"]["found"]
    assert told["error"]["type"] == "ConfigurationError"
    assert told["error"]["remedy"]
    # Python prints the text of an exit with status 1.
    assert found in f"{said}{ended.value.code}"


def test_a_training_tells_its_steps_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from memtrain.cli import training

    (tmp_path / "flagged.csv").write_text("key\na.png\nb.png\n")
    seen: list[Sequence[str]] = []

    class Fake:
        held = folder = None

        def __init__(self, *_: object, **__: object) -> None:
            seen.append(sys.argv[1:])
            print("Training")
            Fake.folder = tmp_path  # type: ignore[assignment]
            self.trainer = SimpleNamespace(global_step=7, current_epoch=1)

    monkeypatch.setattr(training, "TrainCLI", Fake)
    monkeypatch.setattr(sys, "argv", ["train.py", "--json", "--trainer.max_steps", "7"])
    cli.train()
    told, said = printed(capsys)
    assert seen == [["fit", "--config", "configs/tiny.yaml", "--trainer.max_steps", "7"]]
    assert told["found"] == {"steps": 7, "epochs": 1, "flagged": 2}
    assert told["files"] == [str(tmp_path / "flagged.csv")]
    assert said == "Training\n"


def test_a_signal_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), printing("measure", ["--json"]):
        sys.exit(128 + signal.SIGTERM)
    told, _ = printed(capsys)
    assert (told["exit_status"], told["error"]["found"]) == (143, "stopped by SIGTERM")


def test_statuses_of_a_condition_are_no_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), printing("measure", ["--json"]):
        tell({"share": math.nan, "path": Path("x")})
        sys.exit(3)
    told, _ = printed(capsys)
    assert (told["exit_status"], told["error"]) == (3, None)
    assert told["found"] == {"share": None, "path": "x"}


def test_an_unknown_error_is_told_and_raised(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), printing("measure", ["--json"]):
        _ = 1 / 0
    told, _ = printed(capsys)
    assert (told["exit_status"], told["error"]["type"]) == (1, "ZeroDivisionError")


def test_quiet_silences_warnings_and_progress_but_no_errors(capfd: pytest.CaptureFixture[str]) -> None:
    with printing("measure", ["--quiet"]) as words:
        assert words == []
        assert progress_is_off()
        logging.getLogger("memtrain").warning("a warning")
        warnings.warn("another", stacklevel=1)
        print("a line")
        logging.getLogger("memtrain").error("an error")
    assert not progress_is_off()
    with pytest.raises(SystemExit, match="found"), printing("measure", ["--quiet"]):
        end(ConfigurationError("found"))
    said = capfd.readouterr()
    assert said.out == ""
    assert "another" not in said.err


def test_a_plan_still_has_its_file() -> None:
    assert taken_output("plan", ["--json", "plan.json"]) == (False, False, ["--json", "plan.json"])
    assert taken_output("plan", ["--json", "--measure"]) == (False, True, ["--measure"])
    assert taken_output("measure", ["--run", "x", "--quiet"]) == (True, False, ["--run", "x"])


def test_what_started_processes_print_goes_to_standard_error() -> None:
    """They have the file descriptor, and not Python's stream."""
    code = (
        "import os, subprocess; from memtrain.cli.outcome import printing\n"
        "with printing('x', ['--json']):\n"
        "    print('from Python', flush=True); os.system('echo from a child')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout)["command"] == "x"
    assert done.stderr.splitlines() == ["from Python", "from a child"]


@pytest.mark.parametrize(("number", "status"), [(None, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_is_told_with_its_status(
    number: int | None, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), printing("measure", ["--json"]):
        raise KeyboardInterrupt(*([number] if number else []))
    told, _ = printed(capsys)
    assert (told["exit_status"], told["error"]["type"]) == (status, "Stopped")


@pytest.mark.parametrize(
    ("words", "found"),
    [(["mesure", "--json"], "no command 'mesure'"), (["completion", "--json"], "No shell is named")],
)
def test_a_misuse_is_told_by_every_command(words: list[str], found: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    told, _ = printed(capsys)
    assert (ended.value.code, told["exit_status"]) == (2, 2)
    assert found in told["error"]["found"]


def test_processes_that_a_quiet_command_starts_are_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(QUIET_CHILD, raising=False)
    with printing("train", ["--quiet"]):
        assert os.environ[QUIET_CHILD]
    assert QUIET_CHILD not in os.environ
    monkeypatch.setenv(QUIET_CHILD, "1")
    with printing("train", []):
        assert progress_is_off()
    assert os.environ[QUIET_CHILD] == "1"


@pytest.mark.parametrize("place", [">&-", "2>&-", ">/dev/full", "| true"])
def test_an_object_that_nobody_takes_ends_without_a_traceback(place: str) -> None:
    code = (
        "from memtrain.cli.outcome import printing\nfrom memtrain.cli.stopped import stopped_by_signals\n"
        "with stopped_by_signals(['x']), printing('x', ['--json']): raise KeyboardInterrupt"
    )
    shell = f'"$0" -c "$1" {place}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", shell, sys.executable, code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert ('"exit_status": 130' in done.stdout) == (place == "2>&-")


def test_a_condition_that_cannot_be_understood_is_a_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.evaluate(["measure", "--fail_on", "foo > 1", "--json"])
    told, _ = printed(capsys)
    assert (ended.value.code, told["exit_status"]) == (2, 2)
    assert "foo > 1" in told["error"]["found"]
    assert "reproduced > 0.01" in told["error"]["remedy"]


@pytest.mark.parametrize(("word", "shown"), [("--quiet", True), ("--json", False)])
def test_a_quiet_command_says_why_its_status_is_not_0(
    word: str, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {"verdict": {"cleared": False, "text": "Pictures come back."}}
    monkeypatch.setattr(evaluation_parts, "run_command", lambda words, stage: results)
    with pytest.raises(SystemExit) as ended:
        cli.evaluate(["measure", "--fail_on", "reproduced", word])
    assert ended.value.code == 3
    assert ("Status 3: " in capsys.readouterr().err) == shown


@pytest.mark.slow
def test_a_real_training_ends_with_one_object(tmp_path: Path) -> None:
    small = ["--trainer.max_steps", "2", "--trainer.default_root_dir", str(tmp_path / "run")]
    small += ["--data.init_args.families", "off", "--data.init_args.heldout_fraction", "0"]
    small += ["--trainer.limit_val_batches", "0", "--monitor.reference", "false"]
    config = str(ROOT / "configs" / "tiny_baseline.yaml")
    command = [sys.executable, "train.py", "--json", "--config", config, *small]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert told["found"]["steps"] == 2
    assert str(tmp_path / "run" / "pipeline") in told["files"]
