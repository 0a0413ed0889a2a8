"""A search in parts, with a calibration of its own, is the search that the stage makes by itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from memtrain import cli
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.calibrate.calibrate import calibrate
from memtrain.evaluation.stages.localize.localize import localize
from memtrain.evaluation.stages.localize.search import Search, search_part
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.evaluation.stages.roles import NEURONS, Roles
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics
from memtrain.localization.threshold import Threshold

CONTROLS = [PromptToScore(text, False) for text in ("e", "f g", "h i", "j", "k l")]
PROMPTS = [PromptToScore("a b", True), *CONTROLS[:2], PromptToScore("c d"), *CONTROLS[2:]]
SAMPLING = Sampling(seeds=(0,), steps=2, guidance_scale=4.0, batch_size=8, progress=False)


def given(pipeline: StableDiffusionPipeline, output: Path, prompts: list[PromptToScore] = PROMPTS) -> StageInput:
    return StageInput(pipeline=pipeline, prompts=prompts, output=output, sampling=SAMPLING)


def test_every_other_control_calibrates() -> None:
    roles = Roles.of(PROMPTS)
    assert (roles.asked, roles.calibrating, roles.tested) == ([0, 3], [1, 4, 6], [2, 5])
    assert roles.searched == [0, 3, 2, 5] and roles.controls == [1, 2, 4, 5, 6]
    other = roles.calibrated_on(PROMPTS, {"f g", "something else"})
    assert (other.calibrating, other.tested) == ([2], [1, 4, 5, 6])
    assert Roles.of(PROMPTS[:4]).calibrating == []
    for wrong in (CONTROLS, [PROMPTS[0], PROMPTS[0]], []):
        with pytest.raises(ConfigurationError, match="different prompts"):
            Roles.of(wrong)


def test_calibrated_and_searched_in_parts_or_in_one_go(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    settings = Settings(seeds=3, most_k=1)
    search = Search(settings=settings)
    whole = localize(given(pipeline, tmp_path / "whole"), search=search)
    case = given(pipeline, tmp_path / "parts")
    with pytest.raises(ConfigurationError, match="holds no calibration for the shares"):
        search_part(case, shard=(0, 2), search=search)
    results = calibrate(case, settings=settings)
    assert (results["statistics"]["prompts"], results["threshold"]["count"]) == (3, 3)
    assert json.loads((tmp_path / "parts" / "calibration.json").read_text()) == results
    kept = Threshold.load(tmp_path / "whole" / NEURONS / "threshold.json")
    assert results["threshold"]["value"] == kept.value
    parts = [search_part(case, shard=(index, 2), search=search)[0] for index in range(2)]
    assert [[one.prompt for one in part.found] for part in parts] == [["a b", "f g"], ["c d", "j"]]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts" / NEURONS / "prompts").iterdir()}
    again = calibrate(case, settings=settings)
    assert again["threshold"] == results["threshold"], "what is there is taken"
    joined = localize(case, search=search)
    assert joined["search"] == whole["search"] and joined["located"] == whole["located"]
    assert joined["conditions"] == whole["conditions"]
    assert len(stamps) == 4 and all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    with pytest.raises(ConfigurationError, match="calibration on 3 prompts, which differ from the 5 given now"):
        calibrate(given(pipeline, tmp_path / "parts", CONTROLS), settings=settings)


def test_a_calibration_on_other_prompts_leaves_all_controls_to_be_tested(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    settings = Settings(seeds=3, most_k=1)
    ordinary = [PromptToScore(text) for text in ("m n", "o", "e")]
    threshold = calibrate(given(pipeline, tmp_path, ordinary), settings=settings)["threshold"]["value"]
    results = localize(given(pipeline, tmp_path), search=Search(settings=settings))
    assert results["search"]["threshold"] == threshold
    assert results["prompts"] == {"asked": 2, "controls": 5, "controls_tested": 4, "lines": 7}, "one of them calibrated"
    by_share = localize(
        given(pipeline, tmp_path),
        search=Search(settings=Settings(seeds=3, sites="mid_block*"), contribution=0.5),
    )
    assert by_share["search"]["threshold"] == threshold
    assert all(site.startswith("mid_block") for site in by_share["search"]["sites"])


def test_prompts_that_cannot_calibrate_are_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is known not to be memorized"):
        calibrate(given(pipeline, tmp_path, [PROMPTS[0], PROMPTS[3]]))
    mixed = given(pipeline, tmp_path, [PROMPTS[3], *CONTROLS[:4]])
    assert calibrate(mixed, settings=Settings(seeds=3))["threshold"]["count"] == 2


def test_another_models_calibration_is_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    calibrate(given(pipeline, tmp_path, CONTROLS), settings=Settings(seeds=3))
    assert ActivationStatistics.load(tmp_path / NEURONS / "statistics.safetensors").count == len(CONTROLS)
    other = copy.copy(pipeline)
    other.unet = copy.deepcopy(pipeline.unet)
    other.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_v.weight.data[0, 0] += 1
    with pytest.raises(ConfigurationError, match="was measured on another model"):
        search_part(given(other, tmp_path), shard=(0, 1), search=Search(settings=Settings(seeds=3)))
    for share in (None, 0.4):
        with pytest.raises(ConfigurationError, match="was measured on another model"):
            localize(given(other, tmp_path), search=Search(settings=Settings(seeds=3), contribution=share))
    with pytest.raises(ConfigurationError, match="The threshold was measured with"):
        localize(given(pipeline, tmp_path), search=Search(settings=Settings(seeds=4), contribution=0.4))


def test_from_the_command_line(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    (tmp_path / "others.txt").write_text("e\nf g\nh i\n")
    (tmp_path / "asked.csv").write_text("prompt,memorized\na b,1\nc d,1\n")
    common = ["--model", str(pipeline_folder), "--output", str(tmp_path / "out")]
    cli.evaluate(["calibrate", *common, "--prompts", str(tmp_path / "others.txt")])
    assert "over 3 prompts" in capsys.readouterr().out
    assert "Calibration of the neuron search" in (tmp_path / "out" / "report.html").read_text()
    asked = ["localize", *common, "--prompts", str(tmp_path / "asked.csv"), "--steps", "2", "--images_per_prompt", "1"]
    cli.evaluate([*asked, "--shard", "1/2"])
    assert "Part 1/2 of the prompts is searched" in capsys.readouterr().out
    cli.evaluate([*asked, "--shard", "merge"])
    assert "of those asked about" in capsys.readouterr().out
    assert "Neuron masking" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(SystemExit, match="contributions take seconds"):
        cli.evaluate([*asked, "--shard", "0/2", "--contribution", "0.4"])
