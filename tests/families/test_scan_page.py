"""The page of a scan: contact sheets, everything escaped, nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from memtrain.data.source import open_source
from memtrain.families import scan_page
from memtrain.families.scan import scan
from memtrain.families.scan_page import write_page

from .picture_folder import ODD, picture, with_copies, write_pictures


class Read(HTMLParser):
    """What a browser sees: tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def page(folder: Path, output: Path, name: str = "my <data>") -> Read:
    source = open_source(str(folder))
    found = scan(source, progress=False)
    assert found is not None
    write_page(found, source, output, name=name)
    return Read(output.read_text(encoding="utf-8"))


def test_families_are_shown_with_names_reasons_and_counts(tmp_path: Path) -> None:
    shown = page(with_copies(tmp_path / "data"), tmp_path / "report.html")
    words = re.sub(r"\s+", " ", shown.text)
    assert "45 images are 41 pictures. 2 of these have several files, 6 in all. The largest has 4." in words
    assert "1 caption belongs to several pictures." in words
    assert "4 files · picture number 0" in words
    assert "equal pixels" in words
    assert "broken.png" in words
    assert "cannot be read" in words
    assert shown.tags.count("img") == 4 + 2 + 2
    assert words.index("4 files ·") < words.index("2 files ·"), "the largest first"


def test_keys_and_captions_are_text_and_nothing_is_loaded(tmp_path: Path) -> None:
    shown = page(with_copies(tmp_path / "data"), tmp_path / "report.html")
    assert "script" not in shown.tags
    assert ODD in shown.text
    assert "my <data>" in shown.text
    sources = [value for name, value in shown.attributes if name in ("src", "href")]
    assert sources
    assert all(value is not None and value.startswith("data:image/jpeg;base64,") for value in sources)


def test_only_the_largest_families_and_some_members_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_page, "MEMBERS", 3)
    monkeypatch.setattr(scan_page, "PICTURES", 1)
    shown = page(with_copies(tmp_path / "data", broken=False), tmp_path / "report.html")
    words = re.sub(r"\s+", " ", shown.text)
    assert "4 files (3 shown)" in words
    assert "The 1 largest." in words
    assert "2 files ·" not in words
    assert "cannot be read" not in words


def test_data_without_copies_say_so(tmp_path: Path) -> None:
    data = write_pictures(tmp_path, {f"{n}.png": (picture(n), f"text {n}") for n in range(3)})
    shown = page(data, tmp_path / "report.html")
    assert "3 images are 3 pictures. None of them has several files." in re.sub(r"\s+", " ", shown.text)
    assert "img" not in shown.tags


def test_an_image_that_is_gone_meanwhile_leaves_a_gap(tmp_path: Path) -> None:
    source = open_source(str(with_copies(tmp_path / "data")))
    found = scan(source, progress=False)
    assert found is not None
    (tmp_path / "data" / "copy of 1.png").unlink()
    write_page(found, source, tmp_path / "report.html", name="x")
    assert "not readable any more" in (tmp_path / "report.html").read_text(encoding="utf-8")
