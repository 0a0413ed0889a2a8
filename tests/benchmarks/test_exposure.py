"""The benchmark of exposure: its tables and figure, of figures made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from memtrain.evaluation.stages.measure.counting.border_keys import border_exposure
from memtrain.evaluation.stages.measure.counting.exposure import canary_exposure

from .scripts import Modules


@pytest.fixture
def results() -> dict:
    torch.manual_seed(0)
    losses = torch.rand(6, 16)
    losses[:2, 0] = -1
    levels = torch.rand(30)
    painted = torch.rand(30, 2)
    painted[:5] = levels[:5, None]
    borders = border_exposure(
        painted, levels, keys=[str(row) for row in range(30)], repetitions=[40] * 5 + [1] * 5 + [0] * 20
    )
    canaries = canary_exposure(
        losses=losses, similarity=-losses, keys=list("abcdef"), repetitions=[40, 40, 10, 10, 0, 0]
    )
    return {"steps": 9, "epochs": 1.5, "canaries": canaries, "borders": borders}


def test_tables_and_figure(scripts: Modules, results: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "exposure.json").write_text(json.dumps(results), encoding="utf-8")
    scripts.exposure.main(json=str(tmp_path / "exposure.json"), figure=str(tmp_path / "exposure.png"))
    shown = capsys.readouterr().out
    assert "| 40 | 2 | 4.0 (4.0 to 4.0) | 2 of 2 | 4.0 (4.0 to 4.0) | 2 of 2 |" in shown
    assert "| held out | 20 |" in shown and "| never planted | 2 |" in shown
    assert "key errors, repeated below unique: 1.000 (1.000 to 1.000)" in shown
    assert (tmp_path / "exposure.png").stat().st_size > 5000


def test_likeness_of_pixels_is_minus_their_root_mean_square_difference(scripts: Modules) -> None:
    measure = scripts.exposure.Pixels()
    black, grey = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.full((1, 3, 4, 4), 51, dtype=torch.uint8)
    assert measure.similarity(measure.describe(black), measure.describe(grey)).item() == pytest.approx(-0.2)
