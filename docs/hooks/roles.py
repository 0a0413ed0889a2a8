"""Names in docstrings, such as ":class:`memtrain.guard.Guard`", become links to their pages in the reference."""

from __future__ import annotations

import posixpath
import re

from links import ROOT
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROLE = re.compile(r":(?:mod|class|func|meth|attr|data|exc):<code>(~?)([\w.]+)</code>")


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put a link in the place of every name that has a page, and the bare name in the place of others."""

    def replaced(match: re.Match[str]) -> str:
        name = match[2]
        shown = f"<code>{name.rpartition('.')[2] if match[1] else name}</code>"
        target = address(name)
        if target is None:
            return shown
        return f'<a href="{posixpath.relpath(target, posixpath.dirname(page.file.url) or ".")}">{shown}</a>'

    return ROLE.sub(replaced, content) if page.file.src_uri.startswith("reference/") else content


def address(name: str) -> str | None:
    """Where the reference describes a module, class or function of memtrain; None for other names."""
    parts = name.split(".")
    for count in range(len(parts), 1, -1):
        package, module, inside = (
            ".".join(parts[: count - 1]),
            parts[count - 1],
            f"#{name}" if count < len(parts) else "",
        )
        folder = ROOT.joinpath(*parts[:count])
        if folder.is_dir():
            return f"reference/{package}.{module}.html{inside}"
        if folder.with_suffix(".py").is_file():
            return f"reference/{package}/{module}.html{inside}"
    return None
