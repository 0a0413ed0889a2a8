"""Numbers that no training has, and folders in which no run can begin."""

from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from memtrain.cli.run_settings import check_numbers, require_apart, require_new
from memtrain.cli.stopped import continue_training
from memtrain.errors import ConfigurationError


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("trainer", "accumulate_grad_batches", 0),
        ("trainer", "max_steps", 0),
        ("data", "num_workers", -1),
        ("data", "resolution", 1_000_000),
        ("model", "warmup_steps", -5),
        ("model", "ema_decay", 2.0),
        ("", "seed_everything", -1),
    ],
)
def test_numbers_that_no_training_has(section: str, name: str, value: float) -> None:
    inner: dict[str, Any] = {name: value}
    held = Namespace(init_args=Namespace(**inner)) if section in ("data", "model") else Namespace(**inner)
    with pytest.raises(ConfigurationError, match=f"{name}={value}"):
        check_numbers(Namespace(**{section: held}) if section else held)
    check_numbers(Namespace(seed_everything=True, data=None, trainer=Namespace(max_steps=-1)))


def test_a_run_within_its_data_is_refused(tmp_path: Path) -> None:
    data = Namespace(init_args={"path": str(tmp_path / "photos"), "heldout_path": None})
    (tmp_path / "photos").mkdir()
    for folder in (tmp_path / "photos", tmp_path / "photos" / "run"):
        with pytest.raises(ConfigurationError, match="the path of the data"):
            require_apart(folder, data)
    require_apart(tmp_path, data)
    require_apart(tmp_path / "photos-run", data)


def test_records_alone_are_no_run_to_keep(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    require_new(tmp_path)
    (tmp_path / "pipeline").mkdir()
    with pytest.raises(ConfigurationError, match="holds an earlier run: pipeline"):
        require_new(tmp_path)


def test_the_command_that_goes_on_keeps_what_no_configuration_holds(tmp_path: Path) -> None:
    given = ["fit", "--trust", "mine", "--config", "a.yaml", "--trust=other"]
    assert continue_training(Path("a run"), given=given).endswith(
        "'a run/config.yaml' --ckpt_path last --trust mine --trust=other"
    )
