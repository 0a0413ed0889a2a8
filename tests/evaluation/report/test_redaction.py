"""A redacted page shows no image, caption or name; equal ones stay equal, and figures stay."""

from __future__ import annotations

import io
import json
import re
from base64 import b64decode
from pathlib import Path

import pytest
from PIL import Image

from memtrain.cli import evaluate
from memtrain.errors import RecordError
from memtrain.evaluation.report.redaction import Codes, check_redacted
from memtrain.evaluation.report.section import one_colour, png_uri
from memtrain.evaluation.stages.base import write_report
from tests.evaluation.report.made_results import KEY, OTHER, write_full_results


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_full_results(tmp_path)
    return tmp_path


def test_nothing_can_be_recognised(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command; the whole report stays as it was, and the page says what it is."""
    whole = write_report(folder).read_text(encoding="utf-8")
    evaluate(["report", str(folder), "--redact"])
    page, said = (folder / name for name in ("report-redacted.html", "results-redacted.md"))
    assert f"Report: {page}" in capsys.readouterr().out
    assert (folder / "report.html").read_text(encoding="utf-8") == whole
    assert KEY in whole and "a portrait of" in whole
    for path in (page, said):
        text = path.read_text(encoding="utf-8")
        assert "This page leaves out images, captions and names" in text
        for secret in (KEY, OTHER, "Weiß", "Müller", "a portrait of", "key-3"):
            assert secret not in text, secret
        assert "2 of 4" in text and "41.7%" in text, "figures stay"
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert len(found) > 10
    for one in found:
        with Image.open(io.BytesIO(b64decode(one))) as image:
            assert len(image.convert("RGB").getcolors()) == 1
    codes = re.findall(r"such as (x[0-9a-f]{10})", text) + re.findall(r"picture (x[0-9a-f]{10}) was", text)
    assert len(codes) == 2 and len(set(codes)) == 1, "the same name is the same code, in every sentence"


def test_codes_are_kept_by_a_secret_alone(folder: Path) -> None:
    assert Codes("a").code("caption") == Codes("a").code("caption") != Codes("b").code("caption")
    assert Codes().code("caption") != Codes().code("caption"), "drawn anew"
    pages = []
    for _ in range(2):
        evaluate(["report", "--of", str(folder), "--redact", "--redact_key", "s"])
        pages.append((folder / "report-redacted.html").read_bytes())
    assert pages[0] == pages[1]


def test_names_are_found_as_whole_words_and_the_longest_first() -> None:
    codes = Codes("s")
    codes.known |= {"anna", "anna maria", "12"}
    assert codes.sentence("hannah and 12 others") == "hannah and 12 others"
    assert codes.sentence("anna maria, anna") == f"{codes.code('anna maria')}, {codes.code('anna')}"
    assert codes.sentence("12") == codes.code("12"), "short ones where they are all that is said"


def test_a_block_has_the_average_colour() -> None:
    image = Image.new("RGB", (40, 20), (0, 0, 0))
    image.paste((200, 100, 50), (0, 0, 20, 20))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    with one_colour():
        uri = png_uri(buffer.getvalue())
    with Image.open(io.BytesIO(b64decode(uri.partition(",")[2]))) as block:
        assert block.size == (16, 8) and block.getcolors() == [(128, (100, 50, 25))]
    assert png_uri(buffer.getvalue()) != uri, "only while it lasts"


def test_a_page_with_a_picture_in_it_is_refused_and_deleted(folder: Path) -> None:
    page = write_report(folder)
    with pytest.raises(RecordError, match="not replaced by a block of one colour"):
        check_redacted(page)
    assert not page.exists()


def test_what_cannot_be_reported_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="does not exist"):
        evaluate(["report", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="redact_key without redact"):
        evaluate(["report", str(folder), "--redact_key", "a"])
    content = json.loads((folder / "results.json").read_text())
    assert content["counts"]["by_group"][KEY], "the results themselves stay"


@pytest.mark.parametrize("name", ["results.json", "samples.parquet"])
def test_what_cannot_be_read_cannot_be_redacted(name: str, folder: Path) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    with pytest.raises(SystemExit, match=rf"{name}.*\n.*\n.*run the stage that wrote it again, or remove it"):
        evaluate(["report", str(folder), "--redact"])
    assert not (folder / "report-redacted.html").exists()
