"""Grids of images with a line of text above each row. Every pixel of a sampled image is shown as it is.

Text comes from the data (captions, keys), so it is drawn and never used as a name. The font draws unknown characters as
boxes. Images are enlarged or reduced by whole numbers, so that small images can be seen and large images fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL = 256
"""Most pixels of an image's longer side, as far as the image can be reduced. Images up to half of it are enlarged."""
GAP, LINE, TEXT = 6, 17, 13
"""Pixels between images, of a line of text, and of its letters."""
WIDTH_OF_TEXT = 520
"""Least width of a grid in pixels, so that its text can be read."""


@dataclass(frozen=True)
class GridRow:
    """Images side by side, with lines of text above them.

    Attributes:
        lines: lines of text; long lines are cut.
        images: `(3, H, W)` uint8 each; None leaves a place empty.
        marked: whether the row is framed in red.
    """

    lines: Sequence[str]
    images: Sequence[Tensor | None]
    marked: bool = False


def image_grid(rows: Sequence[GridRow], *, titles: Sequence[str] = ()) -> Image.Image:
    """Draw a grid.

    Args:
        rows: one or more rows.
        titles: titles of the columns, above the first row.
    """
    fonts = [ImageFont.truetype(findfont(FontProperties(weight=weight)), TEXT) for weight in ("regular", "bold")]
    cells = [[None if image is None else _cell(image) for image in row.images] for row in rows]
    known = [cell for line in cells for cell in line if cell is not None]
    side = max((cell.width for cell in known), default=CELL)
    columns = max(len(line) for line in cells)
    width = max(WIDTH_OF_TEXT, GAP + columns * (side + GAP))
    heights = [max((cell.height for cell in line if cell is not None), default=0) for line in cells]
    text = [LINE * len(row.lines) for row in rows]
    top = LINE + 2 * GAP if titles else GAP
    height = top + sum(heights) + sum(text) + len(rows) * 2 * GAP
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (side + GAP), GAP), _cut(title, fonts[1], side), fill="black", font=fonts[1])
    y = top
    for row, line, tall in zip(rows, cells, heights, strict=True):
        for number, words in enumerate(row.lines):
            # The first line names the subject of the row.
            shown = _cut(words, fonts[number == 0], width - 2 * GAP)
            color = "#b00020" if row.marked and number == 1 else "black"
            draw.text((GAP, y), shown, fill=color, font=fonts[number == 0])
            y += LINE
        y += GAP // 2
        for column, cell in enumerate(line):
            if cell is not None:
                page.paste(cell, (GAP + column * (side + GAP), y))
        if row.marked and line:
            last = GAP + len(line) * (side + GAP) - GAP
            draw.rectangle((GAP - 3, y - 3, last + 2, y + tall + 2), outline="#b00020", width=2)
        y += tall + 2 * GAP - GAP // 2
    return page


def _cell(image: Tensor) -> Image.Image:
    """Enlarge or reduce an image to a visible size."""
    picture = Image.fromarray(np.ascontiguousarray(image.to(torch.uint8).permute(1, 2, 0).numpy()))
    longer = max(picture.size)
    if longer > CELL:
        return picture.reduce(-(-longer // CELL))
    times = max(1, CELL // 2 // longer)
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a text to one line of at most `width` pixels, with … at the end."""
    line = "".join(character if character.isprintable() else " " for character in " ".join(text.split()))
    if font.getlength(line) <= width:
        return line
    # Bisection finds the longest beginning that fits, because widths grow with length.
    low, high = 0, len(line)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(line[:middle] + "…") <= width else (low, middle - 1)
    return line[:low] + "…"
