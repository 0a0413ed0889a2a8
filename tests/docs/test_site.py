"""The site of the documentation: its links, formulas and names, and that it builds without a warning or a network."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.conftest import ROOT


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    names = ("links", "formulas", "roles")
    modules: dict[str, ModuleType] = {name: importlib.import_module(name) for name in names}
    return SimpleNamespace(**modules)


def page(src_uri: str) -> SimpleNamespace:
    return SimpleNamespace(file=SimpleNamespace(src_uri=src_uri, url=src_uri.replace(".md", ".html")))


@pytest.mark.parametrize(
    ("source", "written", "expected"),
    [
        ("data.md", "../benchmarks/RESULTS.md#few-images", "project/benchmarks/RESULTS.md#few-images"),
        ("how_do_i/slurm.md", "../../slurm/README.md", "../project/slurm/README.md"),
        ("how_do_i/slurm.md", "index.md", "index.md"),
        ("project/benchmarks/RESULTS.md", "../docs/scale.png", "../../scale.png"),
        ("project/SECURITY.md", "docs/threat_model.md", "../threat_model.md"),
        ("how_do_i/own_lightning_module.md", "../../examples/own_module.py", "../project/examples/own_module.py.md"),
        ("faq.md", "../README.md", "index.md"),
    ],
)
def test_a_link_leads_to_the_page_that_the_repository_has_there(
    hooks: SimpleNamespace, source: str, written: str, expected: str
) -> None:
    text = f"See [this]({written}), not `[code]({written})` or [that](https://example.org/a.md)."
    made = hooks.links.on_page_markdown(text, page=page(source), config=None, files=None)
    assert made == f"See [this]({expected}), not `[code]({written})` or [that](https://example.org/a.md)."


def test_links_in_blocks_of_code_are_left_alone(hooks: SimpleNamespace) -> None:
    assert hooks.links.local_links("```text\n[a](b.md)\n```\n[c](d.md)\n") == ["d.md"]


def test_formulas_become_mathml(hooks: SimpleNamespace) -> None:
    html = r'<p><span class="arithmatex">\(x_t &lt; 1\)</span></p><div class="arithmatex">\[\frac{a}{b}\]</div>'
    made = hooks.formulas.on_page_content(html, page=None, config=None, files=None)
    assert made.count("<math") == 2 and "<mfrac>" in made and "&#x0003C;" in made and "arithmatex" not in made


def test_names_in_docstrings_become_links(hooks: SimpleNamespace) -> None:
    html = "<p>:class:<code>~memtrain.guard.Guard</code>, :mod:<code>memtrain.data</code>, :func:<code>mine</code></p>"
    made = hooks.roles.on_page_content(html, page=page("reference/memtrain.data/source.md"), config=None, files=None)
    assert '<a href="../memtrain/guard.html#memtrain.guard.Guard"><code>Guard</code></a>' in made
    assert '<a href="../memtrain.data.html"><code>memtrain.data</code></a>, <code>mine</code>' in made


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    loaded = re.compile(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=\"?https?:")
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 500
    assert [path.name for path in pages if loaded.search(path.read_text(encoding="utf-8"))] == []
