"""The page of a scan: contact sheets of the largest families, in one HTML file without scripts or external parts.

All text from data is escaped. The page holds small copies of the images, so it can be sent to other people.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

import memtrain
from memtrain.errors import DataError
from memtrain.families.looking import ScannedSource
from memtrain.families.scan_result import Scan
from memtrain.families.table import EXACT
from memtrain.files.shown import inert
from memtrain.records import written_whole

PICTURES, CAPTIONS, MEMBERS, BROKEN = 40, 20, 12, 50
"""The largest numbers of shown families (pictures, captions), of samples of each, and of listed unreadable images."""
SIDE = 192
"""The pixels of an image's longer side, twice its size on the page."""
_SIZES = ((2, 2), (3, 5), (6, 10), (11, 100), (101, None))
"""The ranges of the number of a picture's files, in the table of sizes."""


@dataclass(frozen=True)
class _Shown:
    """One image of a contact sheet."""

    key: str
    uri: str
    note: str
    kept: bool


@dataclass(frozen=True)
class _Sheet:
    """One family."""

    caption: str
    files: int
    pictures: int
    images: Sequence[_Shown]


def write_page(scan: Scan, source: ScannedSource, path: Path, *, name: str) -> None:
    """Write the page.

    Args:
        scan: the result of the scan, with the sizes of images.
        source: the scanned source.
        path: the path of the HTML file.
        name: the name of the data, as the user gave it.
    """
    index = {sample.key: row for row, sample in enumerate(source.samples)}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("scan_page.html.j2").render(
        name=name,
        scan=scan,
        counts=scan.counts(),
        sizes=_sizes(scan),
        pictures=[_picture(scan, source, index, name) for name in list(scan.pictures)[:PICTURES]],
        captions=[_caption(scan, source, index, name) for name in list(scan.captions)[:CAPTIONS]],
        broken=list(scan.broken.items())[:BROKEN],
        version=memtrain.__version__,
    )
    with written_whole(path) as unfinished:
        unfinished.write_text(inert(text), encoding="utf-8")


def _sizes(scan: Scan) -> list[tuple[str, int]]:
    """Return the number of pictures for each range of the number of files."""
    rows = []
    for least, most in _SIZES:
        label = f"{least}" if least == most else f"{least} to {most}" if most else f"more than {least - 1}"
        count = sum(least <= len(members) <= (most or len(members)) for members in scan.pictures.values())
        if count:
            rows.append((label, count))
    return rows


def _picture(scan: Scan, source: ScannedSource, index: Mapping[str, int], name: str) -> _Sheet:
    members, kept = scan.pictures[name], scan.kept[name]
    shown = [kept, *(key for key in members if key != kept)][:MEMBERS]
    images = [
        _Shown(key, _uri(source, index[key]), "kept" if key == kept else _note(scan, key), key == kept) for key in shown
    ]
    return _Sheet(source.samples[index[kept]].caption, len(members), 1, images)


def _caption(scan: Scan, source: ScannedSource, index: Mapping[str, int], name: str) -> _Sheet:
    members = scan.captions[name]
    by_picture: dict[str, str] = {}
    for key in members:
        by_picture.setdefault(scan.families.picture(key), key)
    images = [_Shown(key, _uri(source, index[key]), "", False) for key in list(by_picture.values())[:MEMBERS]]
    return _Sheet(source.samples[index[members[0]]].caption, len(members), len(by_picture), images)


def _note(scan: Scan, key: str) -> str:
    """Return how similar an image is to the one that brought it into its family."""
    similarity = scan.families.similarity.get(key)
    if scan.families.reason.get(key) == EXACT:
        return "equal pixels"
    return "first found" if similarity is None else f"similarity {similarity:.3f}"


def _uri(source: ScannedSource, row: int) -> str:
    """Return an image as a small data URI; empty if it cannot be read any more."""
    try:
        image = source.load_image(row)
    except DataError:
        return ""
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
