"""The page in headless Chromium: nothing fails, nothing is fetched, all is legible and reached, in both themes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from memtrain.evaluation.stages.base import write_report
from tests.evaluation.report.browser import Page, browser
from tests.evaluation.report.made_results import ATTACK, write_full_results

pytestmark = pytest.mark.slow

CONTRAST = """
(() => {
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const linear = v => v / 255 <= .04045 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = c => .2126 * linear(c[0]) + .7152 * linear(c[1]) + .0722 * linear(c[2]);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const b = parse(getComputedStyle(e).backgroundColor);
      if (b[3] > 0) return b;
    }
    return [255, 255, 255, 1];
  };
  const found = {};
  for (const details of document.querySelectorAll('details')) details.open = true;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.textContent.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), drawn = element.namespaceURI.endsWith('svg');
    const text = light(parse(drawn ? style.fill : style.color)), back = light(ground(element));
    const ratio = (Math.max(text, back) + .05) / (Math.min(text, back) + .05);
    const said = node.textContent.trim().slice(0, 30);
    const name = `${element.tagName}.${element.getAttribute('class') || ''} ${said}`;
    found[name] = Math.min(found[name] || 99, ratio);
  }
  return found;
})()
"""
"""The contrast of every piece of text, by WCAG 2's formula (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio)."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with every key, hostile captions among them."""
    folder = tmp_path_factory.mktemp("results")
    write_full_results(folder)
    return write_report(folder)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_fails_and_nothing_is_wider_than_the_screen(page: Page, report: Path, width: int, dark: bool) -> None:
    page.open(report, width=width, dark=dark)
    said = [event for event in page.events if event.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled")]
    assert not said, "errors on the console"
    assert not [event for event in page.events if event.get("method") == "Runtime.exceptionThrown"]
    asked = [
        event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert report.as_uri() in asked
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}, "requests beyond the page"
    page.ask("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.ask("document.images.length") > 10
    assert page.ask("document.querySelectorAll('svg').length") >= 5
    assert page.ask("getComputedStyle(document.body).backgroundColor") == (
        "rgb(16, 21, 27)" if dark else "rgb(255, 255, 255)"
    )


def test_the_first_screen_answers(page: Page, report: Path) -> None:
    """On a telephone, too: the verdict and the share that comes back are above the fold."""
    for width, height in ((400, 800), (1400, 900)):
        page.open(report, width=width, height=height)
        for place in (".verdict h2", ".verdict .word", ".figures div"):
            assert page.ask(f"document.querySelector('{place}').getBoundingClientRect().bottom") < height
    assert "May it be released?" in page.ask("document.querySelector('.verdict').innerText")


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(page: Page, report: Path, dark: bool) -> None:
    page.open(report, width=1400, dark=dark)
    found = page.ask(CONTRAST)
    assert len(found) > 100
    weak = {name: round(ratio, 2) for name, ratio in found.items() if ratio < 4.5}
    assert not weak


def test_hostile_captions_are_text(page: Page, report: Path) -> None:
    page.open(report, width=1400)
    assert page.ask("document.scripts.length") == 0
    assert page.ask("document.querySelectorAll('[onerror], [onload], [onclick], iframe, object, embed').length") == 0
    page.ask("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    text = page.ask("document.body.innerText")
    assert ATTACK in text
    assert page.ask("[...document.images].some(image => image.alt.includes('<script>'))")


def test_the_keyboard_reaches_everything_in_order(page: Page, report: Path) -> None:
    """The skip link first, then down the page, around once and without a trap; what is reached is marked."""
    page.open(report, width=1400)
    page.ask("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    places = []
    wanted = page.ask("document.querySelectorAll('a[href], summary, [tabindex=\"0\"]').length")
    for _ in range(wanted):
        page.tab()
        places.append(
            page.ask(
                "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
                "return [e.tagName + (e.className ? '.' + e.className : ''), e.getBoundingClientRect().top + scrollY,"
                "s.outlineStyle]; })()"
            )
        )
    assert places[0][0] == "A.skip"
    assert all(outline == "solid" for _, _, outline in places)
    tops = [top for name, top, _ in places[1:] if name != "A"]
    assert tops == sorted(tops)
    assert {name for name, _, _ in places} == {"A.skip", "A", "SUMMARY", "DIV.scroll"}


def test_a_reader_of_the_screen_finds_landmarks_and_names(page: Page, report: Path) -> None:
    page.open(report, width=1400)
    page.ask("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    nodes = page("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("main", "navigation", "banner"):
        assert len(named.get(role, [])) == 1, role
    for role in ("image", "region", "table", "heading", "link"):
        assert named.get(role), role
        assert all(named[role]), f"a {role} without a name"
    levels = page.ask("[...document.querySelectorAll('h1, h2, h3')].map(one => Number(one.tagName[1]))")
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))


def test_it_prints(page: Page, report: Path) -> None:
    """What is folded on the screen is on paper."""
    page.open(report, width=1000)
    page("Emulation.setEmulatedMedia", media="print")
    hidden = "[...document.querySelectorAll('details .case')].filter(one => !one.getBoundingClientRect().height).length"
    assert page.ask(hidden) == 0
    assert len(page("Page.printToPDF", printBackground=False)["data"]) > 20_000
