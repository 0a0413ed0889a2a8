"""The plan of a run: its figures, that it leaves nothing behind, and the problems that it finds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memtrain import cli
from memtrain.cli.plan import said
from tests.conftest import encoded_image

STEPS = 30


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images, of which half are held out."""
    folder = tmp_path_factory.mktemp("images")
    rows = []
    for number in range(40):
        (folder / f"{number:02}.png").write_bytes(encoded_image(number % 25))
        rows.append(json.dumps({"file_name": f"{number:02}.png", "text": f"picture {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def content(run: Path, images: Path, pretrained: Path, **changes: Any) -> dict[str, Any]:
    """A configuration; `changes` are `{part: {option: value}}`."""
    monitor = {"minimum_visits": 6, "false_positive_rate": 0.05, **changes.get("monitor", {})}
    names = {
        "memtrain.callbacks.monitor.MemorizationMonitor": monitor,
        "memtrain.callbacks.sample_skipping.SampleSkipping": {},
        "memtrain.callbacks.pipeline_export.PipelineExport": {},
        "lightning.pytorch.callbacks.ModelCheckpoint": {"save_last": True, "save_top_k": -1, "every_n_train_steps": 10},
    }
    trainer = {"default_root_dir": str(run), "max_steps": STEPS, "accelerator": "cpu", "accumulate_grad_batches": 2}
    model = {"pretrained": str(pretrained), "ema_decay": 0.9, **changes.get("model", {})}
    data = {"path": str(images), "resolution": 16, "batch_size": 4, "heldout_fraction": 0.5, "cache_latents": True}
    duplicates = {"count": 2, "repeats": 11}
    callbacks = [{"class_path": name, "init_args": options} for name, options in names.items()]
    return {
        "trainer": {**trainer, "callbacks": callbacks, **changes.get("trainer", {})},
        "model": {"class_path": "memtrain.training.text_to_image.TextToImageModule", "init_args": model},
        "data": {
            "class_path": "memtrain.data.module.TextImageDataModule",
            "init_args": {**data, "duplicates": duplicates, **changes.get("data", {})},
        },
    }


Planned = Callable[..., dict[str, Any]]


@pytest.fixture
def planned(tmp_path: Path, images: Path, pipeline_folder: Path) -> Planned:
    """Plans a run, and returns what it wrote."""

    def plan(*words: str, **changes: Any) -> dict[str, Any]:
        file = tmp_path / "config.json"
        file.write_text(json.dumps(content(tmp_path / "run", images, pipeline_folder, **changes)))
        cli.train(["plan", "--config", str(file), "--json", str(tmp_path / "plan.json"), *words])
        found: dict[str, Any] = json.loads((tmp_path / "plan.json").read_text())
        return found

    return plan


def test_a_plan_says_what_the_run_will_do(planned: Planned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned("--measure")
    shown = capsys.readouterr().out
    assert not (tmp_path / "run").exists(), "nothing is left behind"
    assert "No problem was found" in shown
    # 20 pictures are trained on, two of them eleven times in an epoch: 40 visits, ten batches of four.
    data, training, watch = found["Data"], found["Training"], found["Watch"]
    assert (data["training_samples"], data["held_out"], data["visits_in_an_epoch"]) == (20, 20, 40)
    assert data["latents_in_memory_bytes"] == 40 * 4 * 4 * 8 * 8
    assert data["pictures"] is None
    assert (training["batches_per_epoch"], training["steps"], training["epochs"]) == (10, STEPS, 6.0)
    assert training["batch"] == "4 × 1 processes × 2 accumulated = 8"
    # Six epochs, of which four fifths count: 4.8 visits of a picture, and eleven times as many of a repeated one.
    assert watch["counted_visits"] == "4.8 to 52.8 of a picture"
    assert watch["pictures_that_can_be_judged"] == 2
    assert any("2 of 20 pictures" in warning for warning in found["warnings"])
    assert watch["threshold_rests_on"] == "20 held-out samples (order statistic)"
    assert watch["mitigations"] == ["SampleSkipping"]
    before = found["Before step 1"]
    assert (before["images_scanned"], before["images_encoded"]) == (40, 40)
    # Forty samples at four timesteps with two noises; twenty held-out ones until they have six visits.
    assert (before["profile_forwards"], before["held-out_forwards"]) == (320, 120)
    assert before["forwards_last_as_long_as"] == "about 37 batches of training"
    assert not any("first_visit" in warning for warning in found["warnings"])
    assert found["Model"]["trained_parameters"] * 4 == found["Memory"]["gradients_bytes"]
    # Three with a number and the last one, of weights, two moments and the average.
    assert found["Disk"]["checkpoints (4)_bytes"] == 4 * 4 * found["Memory"]["gradients_bytes"]
    assert 0 < found["Memory"]["gradients_bytes"] * 5 < found["Memory"]["peak_bytes"]
    assert found["Time"]["seconds_per_batch"] > 0
    assert found["problems"] == []


def test_a_profile_that_takes_long_before_the_first_step_is_named(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtrain.cli.plan_start.MANY", 20)
    found = planned(monitor={"reference": True})
    assert any("`reference: first_visit` training begins at once" in warning for warning in found["warnings"])
    found = planned(monitor={"reference": "paired"})
    assert "profile_forwards" not in found["Before step 1"]


def test_adapters_are_planned_as_adapters(planned: Planned) -> None:
    found = planned(model={"lora": {"rank": 2}, "ema_decay": None})
    assert found["Model"]["trains"] == "LoRA adapters of rank 2"
    assert found["Model"]["trained_parameters"] < found["Model"]["frozen_parameters"] / 10
    assert found["Memory"]["optimizer_states_bytes"] == 8 * found["Model"]["trained_parameters"]
    assert found["Memory"]["average_bytes"] == 0
    assert [Path(name).name for name in found["Afterwards"]["exports"]] == [
        "pipeline",
        "pytorch_lora_weights.safetensors",
    ]


def test_a_run_in_which_nothing_can_be_judged_is_named(planned: Planned) -> None:
    found = planned(trainer={"max_steps": 2}, data={"duplicates": None})
    assert found["Watch"]["pictures_that_can_be_judged"] == 0
    assert any("few samples can be flagged, or none" in warning for warning in found["warnings"])


def test_a_run_that_an_evaluation_cannot_clear_is_named(planned: Planned) -> None:
    """Edited copies of pictures that are trained on are no held-out pictures."""
    found = planned(data={"heldout": "edited"})
    assert found["Data"]["held_out"] > 16
    assert any(warning.startswith("0 picture(s) are held out") for warning in found["warnings"])
    assert not any("are held out" in warning for warning in planned()["warnings"])


def test_problems_that_would_end_the_run_are_found_together(
    planned: Planned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "data": {"heldout_fraction": 0.0, "heldout": "split"},
        "trainer": {"precision": "bf16-true"},
        "model": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "nesterov": True}}},
    }
    with pytest.raises(SystemExit, match="1"):
        planned(**changes)
    shown = " ".join(capsys.readouterr().out.split())
    for message in ("0 held-out samples cannot calibrate", "half precision", "Nesterov momentum requires"):
        assert message in shown, message
    assert len(json.loads((tmp_path / "plan.json").read_text())["problems"]) == 3


def test_figures_in_words() -> None:
    assert said("peak_bytes", 3 * 2**30) == "peak: 3.0 GiB"
    assert said("steps", None) == "steps: unknown"
    assert said("mitigations", []) == "mitigations: none"
    assert said("trained_parameters", 12345) == "trained parameters: 12,345"


def test_help_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    cli.train(["plan", "--help"])
    assert "--measure" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("fill", "encoded"), [("before", (40, 40)), ("training", (None, None))])
def test_a_cache_counts_before_the_first_step_where_it_is_filled_there(
    planned: Planned, tmp_path: Path, fill: str, encoded: tuple[int | None, int | None]
) -> None:
    cache = {"folder": str(tmp_path / "cache"), "fill": fill}
    found = planned(data={"cache": cache, "cache_latents": False})
    before = found["Before step 1"]
    assert (before.get("images_encoded"), before.get("captions_encoded")) == encoded
    assert not (tmp_path / "cache").exists()
