"""A row per prompt, a column per image, and text that no formula breaks."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from memtrain.evaluation.report.contact_sheet import SheetRow, contact_sheet


def test_the_images_are_in_their_rows_and_columns(tmp_path: Path) -> None:
    red, green, blue = (torch.zeros(3, 8, 8, dtype=torch.uint8) for _ in range(3))
    for channel, image in enumerate((red, green, blue)):
        image[channel] = 255
    rows = [SheetRow("$x_1$ 猫", [("left", red), ("", green)]), SheetRow("second", [("left", blue), ("", red)])]
    contact_sheet(tmp_path / "new" / "sheet.png", rows)
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        pixels, (width, height) = sheet.convert("RGB"), sheet.size
    colours = [pixels.getpixel((width * column // 4, int(height * line))) for line in (0.35, 0.8) for column in (1, 3)]
    assert colours == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 0)]
