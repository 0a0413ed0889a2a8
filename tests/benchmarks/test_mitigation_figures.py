"""The figures of the ablation are drawn."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.benchmarks.ablation import content
from tests.benchmarks.scripts import Modules


def test_figures_are_drawn(scripts: Modules, tmp_path: Path) -> None:
    figures = scripts.mitigation_figures
    figures.draw(content(scripts), tmp_path / "docs" / "table.png")
    figures.draw_doses(content(scripts), tmp_path / "docs" / "dose.png")
    for name in ("table", "dose"):
        with Image.open(tmp_path / "docs" / f"{name}.png") as picture:
            assert picture.width == 9 * figures.DOTS_PER_INCH
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 50
