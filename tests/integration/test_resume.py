"""Runs that are continued: in another folder, in other batches, with other settings; and what is refused by name."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch
from lightning.pytorch import Trainer

from memtrain.data.module import TextImageDataModule
from memtrain.errors import ConfigurationError, RecordError
from memtrain.records import read_steps, read_table
from memtrain.training.continued_training import unfinished_window
from memtrain.training.objective import Objective
from memtrain.training.text_to_image import TextToImageModule
from tests.conftest import ROOT
from tests.integration.resumed_processes import run

Fit = Callable[..., TextToImageModule]
pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`, callbacks",
    "ignore:The dirpath has changed",
    "ignore:Checkpoint directory .* exists and is not empty",
)


@pytest.fixture(scope="module")
def fit(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Trains for some steps: 24 visits are an epoch."""
    from PIL import Image

    images = tmp_path_factory.mktemp("images")
    for number in range(24):
        Image.effect_noise((16, 16), 10 + number).convert("RGB").save(images / f"{number:02}.png")
        (images / f"{number:02}.txt").write_text(f"picture {number}")

    return partial(run, images, pipeline_folder)


@pytest.fixture(scope="module")
def whole(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TextToImageModule]:
    """A run of ten steps, with a checkpoint after each: 6 batches are an epoch."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, fit(folder, stop=10)


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step={step}.ckpt"


def test_a_branch_has_all_that_the_uninterrupted_run_has(
    fit: Fit, whole: tuple[Path, TextToImageModule], tmp_path: Path
) -> None:
    """In another folder: records, profile, flags and weights are those of the whole run, to the last bit."""
    folder, trained = whole
    before = sorted(path.name for path in folder.rglob("*"))
    branch = fit(tmp_path / "branch", stop=10, resume=checkpoint(folder, 5))
    for ours, theirs in zip(branch.parameters(), trained.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name in ("steps", "evidence", "samples"):
        tables = [
            read_steps(run / "records") if name == "steps" else read_table(run / "records", name)
            for run in (folder, tmp_path / "branch")
        ]
        assert repr(tables[0].to_pylist()) == repr(tables[1].to_pylist()), name
    assert (tmp_path / "branch" / "flagged.csv").read_bytes() == (folder / "flagged.csv").read_bytes()
    assert sorted(path.name for path in folder.rglob("*")) == before, "the earlier run is left as it is"


def test_other_batches_are_recorded_once_each(
    fit: Fit, whole: tuple[Path, TextToImageModule], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = whole
    fit(tmp_path / "branch", stop=14, resume=checkpoint(folder, 3), data={"batch_size": 2})
    rows = read_steps(tmp_path / "branch" / "records")
    assert rows["batch"].to_pylist() == [batch for batch in range(3) for _ in range(4)] + [
        batch for batch in range(3, 14) for _ in range(2)
    ]
    first = rows.filter(pc.equal(rows["epoch"], 0))["key"].to_pylist()
    planned = read_table(tmp_path / "branch" / "records", "samples")
    visits = {row["key"]: row["visits_per_epoch"] for row in planned.to_pylist() if row["split"] == "train"}
    assert Counter(first) == Counter(visits), "each planned visit of the epoch once"
    assert "batch_size was 4, and is 2 now" in caplog.text


def test_a_checkpoint_without_its_records_is_refused(
    fit: Fit, whole: tuple[Path, TextToImageModule], tmp_path: Path
) -> None:
    shutil.copy(checkpoint(whole[0], 3), tmp_path / "taken.ckpt")
    with pytest.raises(RecordError, match=r"has no records of the 3 batches before the checkpoint"):
        fit(tmp_path / "branch", stop=5, resume=tmp_path / "taken.ckpt")


def test_a_part_of_the_records_that_is_gone_is_missed(
    fit: Fit, whole: tuple[Path, TextToImageModule], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole[0], tmp_path / "run"))
    (folder / "records" / "steps" / "rank-00000" / "part-00000002-00000002.parquet").unlink()
    with pytest.raises(RecordError, match=r"has 16 rows of the first process .*, which was written after 20"):
        fit(folder, stop=7, resume=checkpoint(folder, 5))


@pytest.mark.slow
def test_records_of_another_run_are_kept_aside_and_its_own_stay(
    fit: Fit, whole: tuple[Path, TextToImageModule], tmp_path: Path
) -> None:
    """A branch that is begun twice is one branch; one in the folder of another run does not take that run's rows."""
    folder, _ = whole
    for stop in (5, 6):
        fit(tmp_path / "branch", stop=stop, resume=checkpoint(folder, 4))
        assert not (tmp_path / "branch" / "records-1").exists()
    fit(tmp_path / "other", stop=5, data={"seed": 9})
    fit(tmp_path / "other", stop=6, resume=checkpoint(folder, 4))
    assert (tmp_path / "other" / "records-1").is_dir()
    rows = [read_steps(tmp_path / name / "records")["key"].to_pylist() for name in ("branch", "other")]
    assert rows[0] == rows[1]


def test_trained_weights_are_not_taken_for_the_base_model(fit: Fit, tmp_path: Path) -> None:
    """A checkpoint of a run without the monitor, continued with it."""
    fit(tmp_path / "bare", stop=2, watched=False)
    with pytest.raises(ConfigurationError, match="holds no state of MemorizationMonitor"):
        fit(tmp_path / "branch", stop=4, resume=checkpoint(tmp_path / "bare", 2))
    fit(tmp_path / "bulk", stop=4, resume=checkpoint(tmp_path / "bare", 2), monitor={"reference": False})
    assert set(read_steps(tmp_path / "bulk" / "records")["step"].to_pylist()) == {2, 3}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"learning_rate": 1e-4}, "learning_rate: the checkpoint was trained with 0.001, this run has 0.0001"),
        ({"ema_decay": 0.5}, "ema_decay: the checkpoint was trained with 0.9, this run has 0.5"),
        ({"optimizer": torch.optim.SGD}, 'optimizer: the checkpoint was trained with "AdamW", this run has "SGD"'),
        ({"objective": Objective(noise_offset=0.1)}, "objective: the checkpoint was trained with "),
    ],
)
def test_what_the_checkpoint_would_overrule_is_refused(
    fit: Fit, whole: tuple[Path, TextToImageModule], tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        fit(tmp_path / "branch", stop=5, resume=checkpoint(whole[0], 3), model=model)
    assert not (tmp_path / "branch" / "records").exists(), "refused before any work"


def test_what_differs_from_here_on_is_said(
    fit: Fit, whole: tuple[Path, TextToImageModule], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(
        tmp_path / "branch",
        stop=5,
        resume=checkpoint(whole[0], 4),
        model={"schedule": "cosine", "seed": 7},
        monitor={"minimum_visits": 3},
        accumulate_grad_batches=2,
    )
    for note in (
        'schedule was "constant", and is "cosine" now: from now on the learning rate',
        "model_seed was 0, and is 7 now",
        "accumulate_grad_batches was 1, and is 2 now",
        "minimum_visits was 2, and is 3 now",
    ):
        assert note in caplog.text


@pytest.mark.slow
def test_a_longer_run_says_that_its_learning_rate_is_another(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted in epochs too, where Lightning makes the loader before it restores its counters."""
    options = {"model": {"schedule": "cosine"}, "watched": False, "max_epochs": 1}
    fit(tmp_path / "short", stop=-1, **options)
    fit(
        tmp_path / "long",
        stop=-1,
        resume=checkpoint(tmp_path / "short", 3),
        data={"batch_size": 2},
        **{**options, "max_epochs": 2},
    )
    assert "total_steps was 6, and is 24 now: from now on the learning rate is that of" in caplog.text
    assert (tmp_path / "long" / "checkpoints" / "step=21.ckpt").is_file(), "3 of 4, 6 of 2 and 12 of 2"
    assert not (tmp_path / "long" / "checkpoints" / "step=22.ckpt").is_file()


def test_a_checkpoint_is_looked_at_with_any_settings(
    fit: Fit, whole: tuple[Path, TextToImageModule], pipeline_folder: Path
) -> None:
    """What a run may not change matters to nobody who validates: there it is the weights that count."""
    module = TextToImageModule(str(pipeline_folder), learning_rate=1.0, ema_decay=0.5)
    data = TextImageDataModule(str(fit.args[0]), resolution=16, batch_size=3, families="off")  # type: ignore[attr-defined]
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.validate(module, data, ckpt_path=checkpoint(whole[0], 3), verbose=False)
    assert "heldout/loss" in trainer.callback_metrics


def test_gradients_that_no_checkpoint_holds_are_counted() -> None:
    def loops(ready: int, *, last: bool = False) -> dict[str, Any]:
        return {
            "loops": {"fit_loop": {"epoch_loop.batch_progress": {"current": {"ready": ready}, "is_last_batch": last}}}
        }

    assert [unfinished_window(loops(ready), 4) for ready in (3, 4, 6)] == [3, 0, 2]
    assert unfinished_window(loops(6, last=True), 4) == 0
    assert unfinished_window({}, 4) == 0


@pytest.mark.slow
def test_two_processes_go_on_as_one_and_one_as_two(fit: Fit, tmp_path: Path, pipeline_folder: Path) -> None:
    """Each planned visit of the epoch once, each recorded once, and everybody's evidence is taken over."""

    def pair(folder: str, stop: int, resume: Path | None = None) -> None:
        images = fit.args[0]  # type: ignore[attr-defined]
        given = [str(one) for one in (images, pipeline_folder, tmp_path / folder, stop, resume or "")]
        subprocess.run([sys.executable, "-m", "tests.integration.resumed_processes", *given], cwd=ROOT, check=True)

    pair("run", 2)
    fit(tmp_path / "run", stop=6, resume=checkpoint(tmp_path / "run", 2))
    pair("run", 14, checkpoint(tmp_path / "run", 4))
    rows = read_steps(tmp_path / "run" / "records")
    batches = Counter(rows["batch"].to_pylist())
    assert batches == {batch: 4 if 2 <= batch < 4 else 8 for batch in range(max(batches) + 1)}
    ranks = {row["batch"]: set() for row in rows.to_pylist()}
    for row in rows.to_pylist():
        ranks[row["batch"]].add(row["rank"])
    assert [len(ranks[batch]) for batch in range(6)] == [2, 2, 1, 1, 2, 2]
    planned = read_table(tmp_path / "run" / "records", "samples")
    visits = {row["key"]: row["visits_per_epoch"] for row in planned.to_pylist() if row["split"] == "train"}
    first = Counter(rows.filter(pc.equal(rows["epoch"], 0))["key"].to_pylist())
    assert all(count <= visits[key] for key, count in first.items()), "no visit twice"
    assert sum(visits.values()) - first.total() < 8, "but for what fills no batch"
    evidence = read_table(tmp_path / "run" / "records", "evidence")
    counted = Counter(rows["key"].to_pylist())
    assert dict(zip(evidence["key"].to_pylist(), evidence["visits"].to_pylist(), strict=True)) == dict(counted)
