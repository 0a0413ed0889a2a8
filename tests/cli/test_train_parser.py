"""The parser of a training: what is refused before Lightning sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from memtrain.cli.command_parser import CarefulParser, named_configs
from memtrain.cli.monitor_options import taken_monitor
from memtrain.cli.train_parser import require_model
from memtrain.errors import ConfigurationError


def test_overlays_alone_are_refused_with_the_command_that_works() -> None:
    with pytest.raises(ConfigurationError, match="smoke is an overlay and names no model") as refused:
        require_model(["fit", "--config", "smoke"])
    assert "--config tiny --config smoke" in refused.value.remedy
    with pytest.raises(ConfigurationError, match="callbacks/loss_skipping and smoke are overlays"):
        require_model(["fit", "--config=callbacks/loss_skipping", "-csmoke"])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--config", "tiny", "--config", "smoke"],
        ["--config", "smoke", "--config", "tiny"],
        ["--config", "smoke", "--model", "my.Model"],
        ["--config", "smoke", "--model.class_path=my.Model"],
        ["--config", "whole.yaml"],
        ["--config", "tiny_baseline"],
    ],
)
def test_a_model_may_be_named_anywhere(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("whole.yaml").write_text("model.class_path: my.Model\n")
    require_model(words)


def test_configurations_are_found_in_every_form() -> None:
    assert named_configs(["--config", "a", "--config=b", "-c", "c", "-cd", "-c=e", "--trust", "f"]) == list("abcde")


@pytest.mark.parametrize("word", ["--conf", "--conf=tiny", "--c"])
def test_a_shortened_option_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = CarefulParser()
    parser.add_argument("--config", action="config")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([word, "tiny"])
    assert ended.value.code == 2
    assert "did you mean --config?" in capsys.readouterr().err


def test_the_monitor_without_a_setting_is_explained() -> None:
    with pytest.raises(ConfigurationError, match="names no setting of the monitor"):
        taken_monitor(["--monitor", "x"])
