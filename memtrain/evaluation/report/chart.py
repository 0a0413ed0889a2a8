"""Charts as SVG inside the page, whose text and colours follow the reader's theme.

Matplotlib draws a chart with the colours of this module. The colours become variables of the page's style, so that a
dark page has light lines. Text stays searchable text, and screen readers get a description of the chart.
"""

from __future__ import annotations

import io
import re

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#010203"
SOFT = "#010204"
SERIES = ("#010205", "#010206", "#010207", "#010208", "#010209")
ALARM = "#01020a"
VARIABLES = {
    INK: "currentColor",
    SOFT: "var(--soft)",
    ALARM: "var(--alarm)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)},
}
"""Colour for matplotlib -> CSS variable in the page."""
WIDE = 5.2
"""Width of a chart in inches: on a screen of 400 px its text is still 9 px high."""
SIZE = 9
"""Size of the text in points."""


def axes_of(height: float, *, width: float = WIDE, bare: bool = False) -> tuple[Figure, Axes]:
    """Make a matplotlib figure without pyplot, which keeps global state and may need a display.

    Args:
        height: the height in inches.
        width: the width in inches.
        bare: whether to leave out ticks, for a small curve beside pictures.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=SIZE, colors=INK, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.xaxis.label.set(color=INK, size=SIZE)
    axes.yaxis.label.set(color=INK, size=SIZE)
    if bare:
        axes.set_xticks([])
        axes.set_yticks([])
    return figure, axes


def svg(figure: Figure, *, name: str, alt: str) -> Markup:
    """Convert a drawing to an SVG element of the page.

    Args:
        figure: a figure drawn with the colours of this module.
        name: the name of the chart, unique within the page; letters and digits.
        alt: the description of the chart in words.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "memtrain"}):
        blank = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=blank)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    # matplotlib's own style would apply to the whole document, which is the page here.
    text = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    size = re.search(r'viewBox="[^"]*"', text)
    assert size is not None  # matplotlib always writes a viewBox
    inside = text[text.index(">") + 1 :]
    # Element ids must be unique within the page, and another chart has the same ids.
    inside = re.sub(r'\bid="', f'id="{name}-', inside)
    inside = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", inside)
    inside = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", inside)
    for colour, variable in VARIABLES.items():
        inside = inside.replace(colour, variable)
    shown = Markup(inside)  # noqa: S704 (matplotlib escapes its input)
    return Markup('<svg {} role="img" aria-label="{}">{}').format(Markup(size[0]), alt, shown)  # noqa: S704


def chart(figure: Figure, *, name: str, alt: str, caption: str = "") -> Markup:
    """Make a chart as wide as the text, with a caption below."""
    below = Markup("<figcaption>{}</figcaption>").format(caption) if caption else Markup("")
    return Markup('<figure class="chart">{}{}</figure>\n').format(svg(figure, name=name, alt=alt), escape(below))
