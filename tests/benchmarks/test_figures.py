"""The figures of docs/how_it_decides.md show what the code and the committed files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from memtrain.evidence.measured_rates import TABLE
from tests.benchmarks.scripts import Modules
from tests.conftest import ROOT


def test_the_rates_are_those_of_the_worst_kind_of_data(scripts: Modules) -> None:
    rows = json.loads((ROOT / "benchmarks" / "rates.json").read_text(encoding="utf-8"))["rows"]
    monitor = [row for row in rows if row["group"] in ("monitor", "bulk")]
    for (count, rate), (mean, worst, _) in TABLE.items():
        found = scripts.figures._worst(monitor, count, f"{rate:g}")
        assert found == pytest.approx((mean, worst), abs=1e-4)


@pytest.mark.slow
def test_every_figure_of_the_page_is_drawn(scripts: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts.figures, "FOLDER", tmp_path)
    scripts.figures.main()
    page = (ROOT / "docs" / "how_it_decides.md").read_text(encoding="utf-8")
    drawn = sorted(tmp_path.glob("*.png"))
    assert len(drawn) == 5
    for path in drawn:
        assert f"(figures/{path.name})" in page
        with Image.open(path) as picture, Image.open(ROOT / "docs" / "figures" / path.name) as committed:
            assert picture.size == committed.size
