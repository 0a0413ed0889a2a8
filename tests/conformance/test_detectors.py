"""Every detector, found by walking the package: its card, batches, costs, needs, and a pipeline left as it was."""

from __future__ import annotations

import copy
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline
from torch import Tensor

import memtrain.detectors
from memtrain.cli import evaluate
from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.detectors.sharpness import Sharpness
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.denoiser_calls import KNOWN
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from tests.conftest import ROOT

PROMPTS = ["a cat", "the dogs ran", "b"]
SEEDS = (0, 5, 9)
STEPS = 5
SAMPLING = Sampling(seeds=SEEDS, steps=STEPS, guidance_scale=4.0, batch_size=4, progress=False)


def members() -> Iterator[type[Detector]]:
    """Every detector class of the package."""
    for found in pkgutil.iter_modules(memtrain.detectors.__path__, memtrain.detectors.__name__ + "."):
        for member in vars(importlib.import_module(found.name)).values():
            is_detector = isinstance(member, type) and issubclass(member, Detector) and member is not Detector
            if is_detector and member.__module__ == found.name:
                yield member


EVERY = pytest.mark.parametrize("kind", list(members()), ids=lambda kind: kind.__name__)


@pytest.fixture(scope="module")
def exact(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The random pipeline in double precision, in which no kernel's order of summing shows."""
    parts = {name: copy.deepcopy(part) for name, part in pipeline.components.items()}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False).to(torch.float64)


def test_the_walk_finds_them() -> None:
    assert len(list(members())) >= 9


@EVERY
def test_it_declares_itself(kind: type[Detector]) -> None:
    detector = kind()
    assert re.fullmatch(r"[a-z][a-z0-9_]+", detector.name)
    assert isinstance(kind.__dict__["higher_means_memorized"], bool)
    assert kind.__dict__["cost"]
    assert detector.needs <= KNOWN
    assert 1 <= detector.calls(50) <= 50
    card = importlib.import_module(kind.__module__).__doc__ or ""
    for part in ("Method:", "Source:", "Direction:", "Cost:", "Suggested values:", "Cannot:"):
        assert f"\n{part} " in card
    direction = "higher" if kind.higher_means_memorized else "lower"
    assert f"Direction: {direction} means memorized" in card


def overlay(kind: type[Detector]) -> Path:
    """Its file in `configs/detectors`."""
    return ROOT / "configs" / "detectors" / f"{kind.__module__.rsplit('.', 1)[1]}.yaml"


@EVERY
def test_its_overlay_adds_it_and_nothing_else(kind: type[Detector]) -> None:
    content = yaml.safe_load(overlay(kind).read_text(encoding="utf-8"))
    assert list(content) == ["detectors+"]
    (entry,) = content["detectors+"]
    assert entry["class_path"] == f"{kind.__module__}.{kind.__name__}"
    kind(**entry.get("init_args", {}))


def test_overlays_add_up_on_the_command_line(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    overlays = [argument for kind in members() for argument in ("--config", str(overlay(kind)))]
    place = ["--model", str(pipeline_folder), "--prompts", "a cat", "--output", str(tmp_path / "scores")]
    evaluate(["detect", *place, "--steps", "2", *overlays])
    assert "a cat" in capsys.readouterr().out
    figures = json.loads((tmp_path / "scores" / "detection.json").read_text(encoding="utf-8"))
    assert set(figures["detectors"]) == {kind().name for kind in members()}


@EVERY
def test_a_prompt_scores_the_same_alone_and_among_others(kind: type[Detector], exact: StableDiffusionPipeline) -> None:
    detector = kind()
    together = read_prompts_with(exact, PROMPTS, [detector], sampling=SAMPLING)[detector.name]
    scores, images = detector.score(together), detector.score_images(together)
    assert scores.shape == (3,)
    assert images.shape == (3, 3)
    assert bool(torch.isfinite(scores).all() and torch.isfinite(images).all())
    assert not torch.equal(together[0], together[1])
    for row, prompt in enumerate(PROMPTS):
        alone = read_prompts_with(exact, [prompt], [detector], sampling=replace(SAMPLING, batch_size=1))[detector.name]
        torch.testing.assert_close(alone[0], together[row], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(detector.score(alone)[0], scores[row], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(detector.score_images(alone)[0], images[row], rtol=1e-6, atol=1e-6)
    order = [2, 0, 1]
    assert torch.equal(detector.score(together[order]), scores[order])


def test_all_at_once_read_what_each_reads_alone(exact: StableDiffusionPipeline) -> None:
    """Further runs of the denoiser, for one detector, are not shown to another."""
    every = [kind() for kind in members()]
    together = read_prompts_with(exact, PROMPTS[:2], every, sampling=SAMPLING)
    for detector in every:
        alone = read_prompts_with(exact, PROMPTS[:2], [detector], sampling=SAMPLING)[detector.name]
        torch.testing.assert_close(together[detector.name], alone, rtol=1e-6, atol=1e-6)


@EVERY
def test_it_runs_the_denoiser_as_often_as_it_says(kind: type[Detector], exact: StableDiffusionPipeline) -> None:
    detector, rows = kind(), []
    counting = exact.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        read_prompts_with(exact, PROMPTS[:1], [detector], sampling=SAMPLING)
    finally:
        counting.remove()
    said = detector.calls(STEPS) + detector.extra_forwards(STEPS)
    # A Jacobian-vector product is one run that costs about two.
    assert sum(rows) == 2 * len(SEEDS) * (said - isinstance(detector, Sharpness))


@EVERY
def test_nothing_stays_on_the_pipeline_after_an_exception(
    kind: type[Detector], exact: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = kind.read

    def broken(self: Detector, step: DenoiserStep) -> Tensor | None:
        read(self, step)
        raise RuntimeError("broken detector")

    before = {name: value for name, value in vars(exact).items() if name.startswith("_progress")}
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken detector"):
        patch.setattr(kind, "read", broken)
        read_prompts_with(exact, PROMPTS, [kind()], sampling=SAMPLING)
    parts = (exact.unet, exact.vae, exact.text_encoder)
    assert not any(module._forward_hooks or module._forward_pre_hooks for part in parts for module in part.modules())
    assert {name: value for name, value in vars(exact).items() if name.startswith("_progress")} == before
    assert not any(module.training for part in parts for module in part.modules())
    detector = kind()
    assert read_prompts_with(exact, PROMPTS[:1], [detector], sampling=SAMPLING)[detector.name].shape[:2] == (1, 3)


@EVERY
def test_needs_that_sampling_cannot_meet_are_refused(
    kind: type[Detector], exact: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = kind()
    if "unconditional" in detector.needs:
        with pytest.raises(ConfigurationError, match=f"{detector.name} needs unconditional"):
            read_prompts_with(exact, PROMPTS, [detector], sampling=replace(SAMPLING, guidance_scale=1.0))
    if "alphas_cumprod" in detector.needs:
        with monkeypatch.context() as patch, pytest.raises(ConfigurationError, match=r"FlowMatchEuler.* has none"):
            patch.setattr(exact, "scheduler", FlowMatchEulerDiscreteScheduler())
            read_prompts_with(exact, PROMPTS, [detector], sampling=SAMPLING)
    with monkeypatch.context() as patch, pytest.raises(ConfigurationError, match=r"'second sight'.*nothing provides"):
        patch.setattr(kind, "needs", detector.needs | {"second sight"})
        read_prompts_with(exact, PROMPTS, [detector], sampling=SAMPLING)
