"""A contact sheet of images: one row per prompt, one column per condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from memtrain.evaluation.report.figure_text import figure_text
from memtrain.files.whole import written_whole

ROWS = 12
"""Largest number of prompts on a sheet."""
WIDEST = 90
"""Largest number of characters of a label."""


@dataclass(frozen=True)
class SheetRow:
    """A prompt and its images.

    Attributes:
        label: the text above the row, cut to :data:`WIDEST` characters.
        images: pairs of column title and image `(3, H, W)` uint8. The titles of the first row stand above the columns.
    """

    label: str
    images: Sequence[tuple[str, Tensor]]


def contact_sheet(path: Path, rows: Sequence[SheetRow]) -> None:
    """Write the sheet as a PNG file.

    Args:
        path: the PNG file.
        rows: the rows, at least one; all rows have the same number of images.
    """
    columns = len(rows[0].images)
    figure = Figure(figsize=(0.35 + 1.02 * columns, 0.35 + 1.22 * len(rows)), dpi=110)
    FigureCanvasAgg(figure)
    top = 1 - 0.42 / figure.get_figheight()
    grid = figure.add_gridspec(
        len(rows), columns, left=0.01, right=0.99, bottom=0.01, top=top, hspace=0.24, wspace=0.05
    )
    for line, row in enumerate(rows):
        for column, (title, image) in enumerate(row.images):
            axes = figure.add_subplot(grid[line, column])
            axes.imshow(image.permute(1, 2, 0).numpy())
            axes.set_axis_off()
            box = axes.get_position()
            if line == 0 and title:
                figure.text(box.x0, 1 - 0.16 / figure.get_figheight(), title, fontsize=9, weight="bold")
            if column == 0:
                label = figure_text(row.label, WIDEST)
                figure.text(box.x0, box.y1 + 0.03 / figure.get_figheight(), label, fontsize=6.5)
    with written_whole(path, durable=False) as unfinished:
        # Without the default Software entry the bytes do not depend on matplotlib's version string.
        figure.savefig(unfinished, format="png", metadata={"Software": None})
