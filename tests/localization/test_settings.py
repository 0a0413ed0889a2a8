"""What the published mode is, where its selection ends, and what a folder of before keeps."""

from __future__ import annotations

import json

import pytest
import torch

from memtrain.errors import ConfigurationError
from memtrain.localization.selection import Selection
from memtrain.localization.settings import Settings


def tries(settings: Settings) -> list[tuple[float | None, int | None]]:
    """θ and k of every set that is tried while none is below the threshold."""
    point, found = Selection.begin([torch.zeros(3)], [torch.zeros(3)], settings), []
    while not point.done:
        found.append((point.theta, point.k))
        point = point.after(False)
    return found


def test_the_published_selection_ends_at_a_literal_one() -> None:
    literal = {"literal_stop": True, "most_k": 30}
    assert tries(Settings(**literal))[-1] == (1.25, 15)
    assert tries(Settings(lowest_theta=2.0, **literal))[-1] == (2.0, 29), "only k ends it: theta stays at 2"
    assert tries(Settings(lowest_theta=2.0, most_k=30))[-1] == (2.25, 11)
    assert tries(Settings(theta_step=0.3, **literal))[-1][1] == 29, "steps that jump over 1"
    assert tries(Settings(initial_theta=None, **literal))[-1] == (None, 29)
    assert tries(Settings(initial_k=None, literal_stop=True))[-1] == (1.25, None)
    with pytest.raises(ConfigurationError, match="would never end"):
        Settings(initial_k=None, theta_step=0.3, literal_stop=True)


def test_what_makes_the_mode_is_set_and_the_rest_kept() -> None:
    mode = Settings(seeds=4, initial_theta=None, refinement="none").as_published()
    assert (mode.call, mode.data_range, mode.cropped, mode.slack, mode.literal_stop) == (1, None, True, 0.0, True)
    assert (mode.seeds, mode.initial_theta, mode.refinement, mode.sequential) == (4, None, "none", False)
    assert mode == Settings.published(seeds=4, initial_theta=None, refinement="none", sequential=False)


def test_a_search_of_before_is_described_as_before() -> None:
    """Later settings are written where they are used alone: a folder that knows none of them goes on."""
    assert "cropped" not in json.loads(Settings().json())
    assert json.loads(Settings.published().json())["cropped"] is True
    assert len(json.loads(Settings().json())) == 14


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"relative_refinement": 0.1}, "sequential=True"),
        ({"sequential": True, "refinement": "checked_split"}, "sequential checked_split"),
        ({"call": 1, "refinement_steps": 1}, "more steps"),
        ({"precision": "int8"}, "bfloat16, float16 or None"),
        ({"split_margin": -1.0}, "split_margin"),
    ],
)
def test_what_contradicts_itself_is_refused(wrong: dict, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Settings(**wrong)
