"""Charts as SVG inside the page: their text and colours follow the reader's theme.

A chart is drawn by matplotlib with the colours of this module, which become the variables of the page's style, so that
a dark page has light lines. Text stays text, for searching, and screen readers are told what the chart shows.
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
"""Colour that matplotlib is given -> what stands in the page."""
WIDE = 5.2
"""Inches of a chart's width: at 400 px its text is still 9 px high."""
SIZE = 9
"""Points of the text."""


def axes_of(height: float, *, width: float = WIDE, bare: bool = False) -> tuple[Figure, Axes]:
    """A figure of its own instead of pyplot, which keeps global state and may look for a display.

    Args:
        height: inches.
        width: inches.
        bare: without ticks, for a small curve beside pictures.
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
    """The drawing, as an element of the page.

    Args:
        figure: drawn with the colours of this module.
        name: distinguishes the chart within the page; letters and digits.
        alt: what it shows, in words.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "memtrain"}):
        blank = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=blank)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    # matplotlib's own style is for the whole document, which here is the page.
    text = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    size = re.search(r'viewBox="[^"]*"', text)
    assert size is not None  # matplotlib always says it
    inside = text[text.index(">") + 1 :]
    # Names are of the page, in which another chart has the same ones.
    inside = re.sub(r'\bid="', f'id="{name}-', inside)
    inside = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", inside)
    inside = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", inside)
    for colour, variable in VARIABLES.items():
        inside = inside.replace(colour, variable)
    shown = Markup(inside)  # noqa: S704 (matplotlib escapes what it is given)
    return Markup('<svg {} role="img" aria-label="{}">{}').format(Markup(size[0]), alt, shown)  # noqa: S704


def chart(figure: Figure, *, name: str, alt: str, caption: str = "") -> Markup:
    """A chart with the width of the text, and what stands below it."""
    below = Markup("<figcaption>{}</figcaption>").format(caption) if caption else Markup("")
    return Markup('<figure class="chart">{}{}</figure>\n').format(svg(figure, name=name, alt=alt), escape(below))
