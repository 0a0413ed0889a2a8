"""A search in parts, with a calibration of its own, is the search that the stage makes by itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline

from memtrain import cli
from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.localize.localize import localize
from memtrain.evaluation.stages.localize.roles import NEURONS, Roles, calibrate, search_part
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics
from memtrain.localization.threshold import Threshold

CONTROLS = [PromptToScore(text, False) for text in ("e", "f g", "h i", "j", "k l")]
PROMPTS = [PromptToScore("a b", True), *CONTROLS[:2], PromptToScore("c d"), *CONTROLS[2:]]
SAMPLING: dict[str, Any] = {"seeds": (0,), "steps": 2, "guidance_scale": 4.0, "batch_size": 8, "progress": False}


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
    whole = localize(pipeline, PROMPTS, output=tmp_path / "whole", settings=settings, **SAMPLING)
    options: dict[str, Any] = {"output": tmp_path / "parts", "settings": settings}
    with pytest.raises(ConfigurationError, match="holds no calibration for all parts"):
        search_part(pipeline, PROMPTS, shard=(0, 2), **options)
    statistics, threshold = calibrate(pipeline, PROMPTS, **options)
    assert (statistics.count, threshold.count) == (3, 3)
    assert threshold == Threshold.load(tmp_path / "whole" / NEURONS / "threshold.json")
    parts = [search_part(pipeline, PROMPTS, shard=(index, 2), progress=False, **options) for index in range(2)]
    assert [[one.prompt for one in part.found] for part in parts] == [["a b", "f g"], ["c d", "j"]]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts" / NEURONS / "prompts").iterdir()}
    assert calibrate(pipeline, PROMPTS, **options)[1] == threshold, "what is there is taken"
    joined = localize(pipeline, PROMPTS, **options, **SAMPLING)
    assert joined["search"] == whole["search"] and joined["located"] == whole["located"]
    assert joined["conditions"] == whole["conditions"]
    assert len(stamps) == 4 and all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    with pytest.raises(ConfigurationError, match="calibration on 3 prompts, which are not the 5 given now"):
        calibrate(pipeline, CONTROLS, **options)


def test_a_calibration_on_other_prompts_leaves_all_controls_to_be_tested(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    settings = Settings(seeds=3, most_k=1)
    ordinary = [PromptToScore(text) for text in ("m n", "o", "e")]
    _, threshold = calibrate(pipeline, ordinary, output=tmp_path, settings=settings)
    results = localize(pipeline, PROMPTS, output=tmp_path, settings=settings, **SAMPLING)
    assert results["search"]["threshold"] == threshold.value
    assert results["prompts"] == {"asked": 2, "controls": 5, "controls_tested": 4}, "one of them calibrated"
    by_share = localize(
        pipeline, PROMPTS, output=tmp_path, settings=Settings(seeds=3, sites="mid_block*"), contribution=0.5, **SAMPLING
    )
    assert by_share["search"]["threshold"] == threshold.value
    assert all(site.startswith("mid_block") for site in by_share["search"]["sites"])


def test_prompts_that_cannot_calibrate_are_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="none is known not to be memorized"):
        calibrate(pipeline, [PROMPTS[0], PROMPTS[3]], output=tmp_path)
    mixed = [PROMPTS[3], *CONTROLS[:4]]
    assert calibrate(pipeline, mixed, output=tmp_path, settings=Settings(seeds=3))[1].count == 2


def test_another_models_calibration_is_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    calibrate(pipeline, CONTROLS, output=tmp_path, settings=Settings(seeds=3))
    assert ActivationStatistics.load(tmp_path / NEURONS / "statistics.safetensors").count == len(CONTROLS)
    other = copy.copy(pipeline)
    other.unet = copy.deepcopy(pipeline.unet)
    other.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_v.weight.data[0, 0] += 1
    with pytest.raises(ConfigurationError, match="was measured on another model"):
        search_part(other, PROMPTS, output=tmp_path, shard=(0, 1), settings=Settings(seeds=3), progress=False)
    for share in (None, 0.4):
        with pytest.raises(ConfigurationError, match="was measured on another model"):
            localize(other, PROMPTS, output=tmp_path, settings=Settings(seeds=3), contribution=share, **SAMPLING)
    with pytest.raises(ConfigurationError, match="The threshold was measured with"):
        localize(pipeline, PROMPTS, output=tmp_path, settings=Settings(seeds=4), contribution=0.4, **SAMPLING)


def test_from_the_command_line(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    (tmp_path / "others.txt").write_text("e\nf g\nh i\n")
    (tmp_path / "asked.csv").write_text("prompt,memorized\na b,1\nc d,1\n")
    common = ["--model", str(pipeline_folder), "--output", str(tmp_path / "out"), "--steps", "2"]
    common += ["--images_per_prompt", "1"]
    cli.evaluate([*common, "--prompts", str(tmp_path / "others.txt"), "--stages", "calibrate"])
    assert "over 3 prompts" in capsys.readouterr().out
    asked = [*common, "--prompts", str(tmp_path / "asked.csv"), "--stages", "localize"]
    cli.evaluate([*asked, "--shard", "1/2"])
    assert "Part 1/2 of the prompts is searched" in capsys.readouterr().out
    cli.evaluate([*asked, "--shard", "merge"])
    assert "of those asked about" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="contributions take seconds"):
        cli.evaluate([*asked, "--shard", "0/2", "--contribution", "0.4"])
