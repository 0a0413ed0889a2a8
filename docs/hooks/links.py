"""Links between pages, as GitHub follows them, become links that work in the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "project"
"""The folder of the site that holds files from outside docs/."""
PICTURES = (".png", ".svg", ".jpg")

FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1`*[ \t]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^()\s#]+)(#[^()\s]*)?(?=\))")


def prose(text: str) -> str:
    """The text with every character of code in it blanked out, at the same length."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    return CODE.sub(blank, FENCE.sub(blank, text))


def local_links(text: str) -> list[str]:
    """The targets of a page's links to files, without their anchors."""
    return [match[1] for match in LINK.finditer(prose(text))]


def path_of(src_uri: str) -> str:
    """The path in the repository of a page of the site."""
    return src_uri.removeprefix(f"{PROJECT}/") if src_uri.startswith(f"{PROJECT}/") else f"docs/{src_uri}"


def place(path: str) -> str:
    """The path in the site of a file or folder of the repository. Files that are no pages or pictures get a page."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{PROJECT}/{path}" if path.endswith((".md", *PICTURES)) else f"{PROJECT}/{path}.md"


def target_of(src_uri: str, link: str) -> str | None:
    """The path in the repository that a link of a page leads to; None where it leads out of the repository."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(path_of(src_uri)), link))
    return None if path.startswith("..") else path


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to where the site has their targets. A link to README.md leads to the first page."""
    source = page.file.src_uri
    if source.startswith("reference/"):
        return markdown
    start, parts = 0, []
    for match in LINK.finditer(prose(markdown)):
        path = target_of(source, match[1])
        path = "docs/index.md" if path == "README.md" else path
        if path is not None:
            parts += [
                markdown[start : match.start(1)],
                posixpath.relpath(place(path), posixpath.dirname(source) or "."),
            ]
            start = match.end(1)
    return "".join([*parts, markdown[start:]])
