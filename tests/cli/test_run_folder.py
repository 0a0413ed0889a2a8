"""What a run knows of its prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from memtrain.cli import run_folder
from memtrain.cli.run_folder import choose_prompts, excluded_images, known_prompts, run_data
from memtrain.data.source import open_source
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.records import EXCLUDED, FLAGGED, HELDOUT, PLANTED, UNIQUE


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


def test_flagged_and_excluded_images_are_asked_for_too(write_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_folder(40)
    keys = sorted(sample.key for sample in open_source(str(folder)).samples)
    (tmp_path / "earlier.csv").write_text("key\n" + "\n".join(keys[:5]) + "\n")
    options = {
        "path": str(folder),
        "heldout_fraction": 0.2,
        "exclude": str(tmp_path / "earlier.csv"),
        "duplicates": {"class_path": "memtrain.data.selection.Duplicates", "init_args": {"count": 2, "repeats": 3}},
        "resolution": 8,
    }
    config = {"data": {"class_path": "memtrain.data.module.TextImageDataModule", "init_args": options}}
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    config, data = run_data(run)
    once = sorted(key for key, group in data.groups.items() if group == UNIQUE)
    found = choose_prompts(
        data, most=3, unique=6, flagged={*once, "unknown"}, excluded=excluded_images(run, config, data)
    )
    asked = {group: [dataset.samples[row].key for row in rows] for group, dataset, rows in found}
    assert [len(asked[name]) for name in (UNIQUE, FLAGGED)] == [6, 3]
    assert not set(asked[UNIQUE]) & set(asked[FLAGGED])
    assert set(asked[UNIQUE] + asked[FLAGGED]) <= set(once)
    held = {key for key, group in data.groups.items() if group == HELDOUT}
    assert set(asked[EXCLUDED]) <= set(keys[:5]) - held
    assert len(asked[EXCLUDED]) == min(3, len(set(keys[:5]) - held))
    assert found[-1][0] == HELDOUT
    plain = {group: rows for group, _, rows in choose_prompts(data, most=3, unique=6)}
    assert plain[UNIQUE] == next(rows for group, _, rows in found if group == UNIQUE)
    assert not plain[FLAGGED]
    assert EXCLUDED not in plain
