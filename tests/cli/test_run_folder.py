"""What a run knows of its prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from memtrain.cli import run_folder
from memtrain.cli.run_folder import known_prompts
from memtrain.data.selection import HELDOUT, PLANTED
from memtrain.evaluation.prompts import PromptToScore


def test_each_caption_is_there_once_and_a_planted_one_as_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset(captions: list[str], brightness: float) -> Any:
        return SimpleNamespace(
            samples=[SimpleNamespace(caption=caption) for caption in captions],
            pixel_values=lambda row: torch.full((3, 2, 2), brightness + row / 10),
        )

    train, held = dataset(["a", "b"], 0.0), dataset(["c", "b", "c", "d"], -1.0)
    chosen = [(PLANTED, train, [0, 1]), (HELDOUT, held, [0, 1, 2, 3])]
    monkeypatch.setattr(run_folder, "choose_prompts", lambda data, **options: chosen)
    data: Any = None
    prompts, images = known_prompts(data, most=9)
    expected = [("a", True), ("b", True), ("c", False), ("d", False)]
    assert prompts == [PromptToScore(text, truth) for text, truth in expected]
    brightness = [0.0, 0.1, -1.0, -0.7]
    assert images[:, 0, 0, 0].tolist() == [round((value + 1) * 127.5) for value in brightness]
