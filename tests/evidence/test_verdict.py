"""What is said, and kept, of how a run came to its flags."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.promise import promise
from memtrain.evidence.verdict import calibration_figures, next_step, verdict, why_untaught


def calibration(heldout: int, *, canaries: int = 0, minimum_visits: int = 2) -> Calibration:
    """After held-out samples had visits enough: "a" has three visits and is flagged, "b" has one."""
    made = Calibration(
        1,
        scored=slice(0, 1),
        memorized_when="high",
        buckets=1,
        false_positive_rate=0.05,
        minimum_visits=minimum_visits,
        canaries=["a", *(f"canary {index}" for index in range(1, canaries))] if canaries else [],
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        values = torch.randn(heldout, 1, generator=generator)
        made.add_heldout([f"held {index}" for index in range(heldout)], [0] * heldout, values)
    made.add(["a", "b", "a", "a"], [0] * 4, torch.full((4, 1), 30.0), step=7)
    return made


def test_figures_say_how_many_samples_were_judged_and_what_canaries_showed() -> None:
    made, promised = calibration(30, canaries=4), promise(30, 0.05)
    assert promised is not None
    assert calibration_figures(made, ["a", "b", "c"]) == {
        "threshold": made.threshold,
        "false_positive_rate": 0.05,
        **promised.figures(),
        "minimum_visits": 2,
        "heldout": 30,
        "samples": 3,
        "judged": 1,
        "flagged": 1,
        "pictures": 3,
        "pictures_flagged": 1,
        "captions_flagged": 0,
        "canaries": 4,
        "canaries_flagged": 1,
        "power": 0.25,
        "separation": None,
    }
    assert list(made.samples.row) == ["a", "b"], "asking makes no samples up"


def test_samples_that_could_not_be_judged_are_not_passed_over() -> None:
    figures = calibration_figures(calibration(30), ["a", "b", "c"])
    said = verdict(figures)
    assert "1 of 3 training samples was flagged" in said
    assert "2 of 3 training samples had fewer than 2 counted visits and could not be flagged" in said
    assert "canaries" not in said
    many = verdict({**figures, "samples": 1091, "judged": 60, "minimum_visits": 10})
    assert "1,031 of 1,091 training samples had fewer than 10 counted visits" in many
    assert "fewer than" not in verdict({**figures, "judged": 3})


def test_a_run_without_flags_claims_no_score_above_the_threshold() -> None:
    figures = {**calibration_figures(calibration(30), ["a", "b"]), "flagged": 0, "pictures_flagged": 0}
    for one in (figures, {**figures, "pictures": 1}):
        said = verdict(one)
        assert "were flagged" in said and "is flagged if its score" in said and "rose" not in said
        assert f"The threshold at the end is {figures['threshold']:.2f}" in said, "a flag has the threshold of its step"


def test_a_run_without_a_threshold_says_so_instead_of_looking_clean() -> None:
    made = Calibration(1, scored=slice(0, 1), memorized_when="high", buckets=1, heldout=False)
    figures = calibration_figures(made, ["a"])
    assert (figures["threshold"], figures["heldout"], figures["power"]) == (None, None, None)
    assert "No sample could be flagged, because too few ordinary training samples" in verdict(figures)
    assert "too few held-out samples" in verdict({**figures, "heldout": 3})


def test_canaries_that_taught_nothing_are_named_with_the_remedy() -> None:
    made = Calibration(
        2, scored=slice(0, 2), memorized_when="unknown", buckets=1, canaries=["c1", "c2", "c3", "c4"], minimum_visits=2
    )
    said = why_untaught(made)
    assert said is not None
    assert "0 canaries and 0 ordinary samples had enough visits (needed: 4 and 32)" in said
    assert said in verdict(calibration_figures(made, ["c1"]), untaught=said)
    made.taught.weights = torch.ones(2, dtype=torch.float64)
    assert why_untaught(made) is None
    assert why_untaught(calibration(30, canaries=4)) is None, "a signal of known sign needs no direction"


@pytest.mark.parametrize(
    ("caption", "configured", "command"),
    [
        ("a cat", True, "memtrain measure --run"),
        ("a cat", False, "memtrain detect --model FOLDER --prompts"),
        (None, False, "records"),
    ],
)
def test_the_next_command_is_one_that_works(
    caption: str | None, configured: bool, command: str, tmp_path: Path
) -> None:
    if configured:
        (tmp_path / "config.yaml").touch()
    table = pa.table({"flagged": [True, False], "caption": pa.array([caption, "a dog"], pa.string())})
    assert command in next_step(table, tmp_path)
    assert ("--run" in next_step(table, tmp_path)) == configured


@pytest.mark.parametrize("count", [0, 1, 2])
def test_figures_and_verdict_of_few_samples_are_numbers_and_words(count: int) -> None:
    keys = ["a", "b"][:count]
    for made in (calibration(30), Calibration(1, scored=slice(0, 1), memorized_when="high", buckets=1, heldout=False)):
        figures = calibration_figures(made, keys)
        assert (figures["samples"], figures["power"]) == (count, None)
        assert figures["judged"] == figures["flagged"] == int("a" in keys and made.heldout is not None)
        assert "nan" not in verdict(figures)
