"""Which stages run, in which order, and what is refused before a model is loaded."""

from __future__ import annotations

import pytest

from memtrain import cli
from memtrain.cli.stages import STAGES, chosen_stages
from memtrain.errors import ConfigurationError


def choose(stages: list[str] | None, *, model: str | None = None, prompts: str | None = None) -> list[str]:
    return chosen_stages(stages, model=model, prompts=prompts, detectors=True)


def test_a_run_is_measured_and_prompts_of_a_model_are_scored_unless_stages_are_named() -> None:
    assert choose(None) == ["measure"]
    assert choose(None, model="m", prompts="a cat") == ["detect"]
    assert choose(["detect"]) == ["detect"]
    assert choose(["detect"], prompts="a cat") == ["detect"]


def test_stages_run_in_their_order_and_once() -> None:
    assert choose(["detect", "measure", "detect"]) == ["measure", "detect"]
    assert choose(list(STAGES)) == list(STAGES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--stages [detekt]", "Unknown stages: detekt\\n  Expected: some of measure, detect"),
        ("--stages []", "No stage to run"),
        ("--model nowhere", "model='nowhere', prompts=None"),
        ("--model nowhere --prompts cat --stages [measure]", "without `measure`"),
        ("--prompts cat", "`measure` does not read"),
        ("--model nowhere --prompts cat --detectors false", "detectors=False leaves nothing to score prompts with"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(options: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        cli.evaluate(options.split())


def test_the_remedy_names_what_exists() -> None:
    with pytest.raises(ConfigurationError, match=r"--stages '\[detect\]'"):
        choose(["measure"], model="m", prompts="a cat")
