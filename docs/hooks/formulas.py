"""Formulas between dollar signs become MathML, which browsers draw without a script."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put MathML in the place of every formula that the Markdown extension `arithmatex` has marked."""
    content = INLINE.sub(lambda match: convert(html.unescape(match[1]).strip()), content)
    return DISPLAY.sub(
        lambda match: f'<div class="formula">{convert(html.unescape(match[1]).strip(), display="block")}</div>', content
    )
