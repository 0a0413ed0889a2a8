"""Text that matplotlib draws as it is, without a warning."""

import warnings

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from memtrain.evaluation.report.figure_text import figure_text


def test_formulas_lines_and_missing_glyphs() -> None:
    assert figure_text("a  $x_1$\n b") == r"a \$x_1\$ b"
    assert figure_text("猫 cat") == "□ cat"
    assert figure_text("abcdef", 4) == "abc…"
    assert figure_text("abcd", 4) == "abcd"


def test_it_can_be_drawn() -> None:
    figure = Figure()
    canvas = FigureCanvasAgg(figure)
    figure.text(0, 0, figure_text("$\\frac{1}$ {猫} \x07 % _^ 😀 \\alpha"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas.draw()
    assert np.asarray(canvas.buffer_rgba())[..., :3].min() < 64, "nothing was drawn"
