"""A curve over checkpoints: a point for each, by step, with what a whole evaluation says, and kept when killed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.checkpoints import Checkpoint
from memtrain.evaluation.stages.measure.curve import curve
from memtrain.evaluation.stages.prompts import Prompt
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.functional.ranking import proportion_interval

SAMPLING = Sampling(seeds=(0,), steps=1, progress=False)


def results(reproduced: int) -> dict[str, Any]:
    groups = {
        "planted": {"reproduced": reproduced, "n": 6},
        "unique": {"reproduced": 0, "n": 2},
        "heldout": {"reproduced": 1, "n": 20},
    }
    calibrated = {"threshold": 0.4, "false_positive_rate": 0.05, "n_heldout": 20}
    other = {"groups": {"planted": {"reproduced": 6, "n": 6}}, **calibrated, "threshold": 0.9}
    return {
        "replication": {"groups": groups, **calibrated},
        "copying": {"recommended": "sscd", "measures": {"sscd": other}},
        "quality": {"heldout_loss": 0.1 * reproduced},
    }


class Evaluations:
    """In place of whole evaluations; the model of step s reproduces s / 100 pictures."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.stop_at: str | None = None

    def __call__(self, given: StageInput, samples: RunSamples) -> Mapping[str, Any]:
        if given.model == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(Path(given.model).stem)
        found = results(int(given.pipeline) // 100)  # type: ignore[call-overload]
        given.output.mkdir(parents=True)
        (given.output / "results.json").write_text(json.dumps(found), encoding="utf-8")
        return found


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Checkpoint]:
    found = []
    for step in (100, 300, 500):
        path = tmp_path / f"step-{step}.ckpt"
        path.write_bytes(bytes(step))
        found.append(Checkpoint(path, step, lambda step=step: step))  # type: ignore[misc]
    return found


@pytest.fixture
def given(pipeline: StableDiffusionPipeline, tmp_path: Path) -> StageInput:
    return StageInput(pipeline=pipeline, output=tmp_path / "out", sampling=SAMPLING)


@pytest.fixture
def samples() -> RunSamples:
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    return RunSamples(
        prompts=[Prompt("a", "a", "unique")], own_images=images, training_images=images, training_keys="a"
    )


def test_each_checkpoint_is_a_point_with_its_interval(
    given: StageInput, samples: RunSamples, checkpoints: list[Checkpoint]
) -> None:
    points = curve(given, samples, checkpoints, evaluate=Evaluations(), asked={})
    assert [(one["step"], one["reproduced"], one["n"]) for one in points] == [(100, 1, 8), (300, 3, 8), (500, 5, 8)]
    assert [one["share"] for one in points] == [1 / 8, 3 / 8, 5 / 8]
    assert points[1]["interval"] == list(proportion_interval(3, 8, level=0.95))
    assert points[2]["heldout_loss"] == pytest.approx(0.5)
    assert points[0]["measure"] == "ratio"
    written = json.loads((given.output / "curve.json").read_text())
    assert written["points"] == points
    assert "each checkpoint's own" in written["calibration"]
    with Image.open(given.output / "curve.png") as image:
        assert image.size == (900, 510)
        assert len(image.convert("RGB").getcolors(10**6) or []) > 3


def test_all_checkpoints_are_counted_by_the_measure_that_is_named(
    given: StageInput, samples: RunSamples, checkpoints: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtrain.evaluation.stages.measure.curve.draw", lambda points, path: path.touch())
    points = curve(given, samples, checkpoints, evaluate=Evaluations(), asked={}, measure="sscd")
    assert [(one["reproduced"], one["n"], one["measure"], one["threshold"]) for one in points] == [
        (6, 6, "sscd", 0.9)
    ] * 3


def test_a_killed_curve_goes_on_and_another_question_does_not(
    given: StageInput, samples: RunSamples, checkpoints: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtrain.evaluation.stages.measure.curve.draw", lambda points, path: path.touch())
    evaluations = Evaluations()
    evaluations.stop_at = str(checkpoints[1].path)
    with pytest.raises(KeyboardInterrupt):
        curve(given, samples, checkpoints, evaluate=evaluations, asked={})
    assert len(json.loads((given.output / "curve.json").read_text())["points"]) == 1
    evaluations.stop_at = None
    points = curve(given, samples, checkpoints, evaluate=evaluations, asked={})
    assert evaluations.seen == ["step-100", "step-300", "step-500"]
    assert [one["reproduced"] for one in points] == [1, 3, 5]
    other = replace(given, sampling=replace(SAMPLING, seeds=(1,)))
    curve(other, samples, checkpoints, evaluate=evaluations, asked={})
    assert len(evaluations.seen) == 6
    half = copy.deepcopy(given.pipeline)
    half.unet.bfloat16()
    curve(replace(given, pipeline=half), samples, checkpoints[:1], evaluate=evaluations, asked={})
    assert evaluations.seen.pop() == "step-100", "in another type of numbers it is another point"
    checkpoints[0].path.write_bytes(b"trained again")
    curve(given, samples, checkpoints, evaluate=evaluations, asked={})
    assert evaluations.seen[6:] == ["step-100"]


def test_no_checkpoints_are_refused(given: StageInput, samples: RunSamples) -> None:
    with pytest.raises(ConfigurationError, match="no checkpoints"):
        curve(given, samples, [], evaluate=Evaluations(), asked={})


@pytest.mark.parametrize("content", ['{"replication": ', "[]", "{}", '{"replication": {"groups": 3}}'])
def test_a_checkpoint_whose_results_are_spoilt_is_evaluated_again(
    content: str,
    given: StageInput,
    samples: RunSamples,
    checkpoints: list[Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("memtrain.evaluation.stages.measure.curve.draw", lambda points, path: path.touch())
    evaluations = Evaluations()
    curve(given, samples, checkpoints[:1], evaluate=evaluations, asked={})
    (kept,) = (given.output / "curve").glob("*/results.json")
    kept.write_text(content)

    def again(given: StageInput, samples: RunSamples) -> Mapping[str, Any]:
        kept.unlink()
        kept.parent.rmdir()
        return evaluations(given, samples)

    (point,) = curve(given, samples, checkpoints[:1], evaluate=again, asked={})
    assert point["reproduced"] == 1 and evaluations.seen == ["step-100"] * 2
    assert "is damaged, so it is evaluated again" in capsys.readouterr().out
