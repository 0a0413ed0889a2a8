"""Redacted results, for pages about images that must stay confidential.

Sections are made from a copy of the results folder. In the copy, captions, keys and all other text of tables are codes.
While the copy exists, every image that goes into a page becomes one block of its average colour. A blur could be undone
and would still show shapes; one colour holds three numbers only. Codes are keyed hashes (HMAC-SHA-256). Without the
secret nobody can find a caption by trying likely ones. Equal texts have equal codes, so that a reader can still follow
a row.

Cannot: hide figures, such as the number of pictures of a group; remove words from a picture that a stage has drawn, so
such pictures become blocks, too.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from PIL import Image

from memtrain.errors import DataError, RecordError
from memtrain.evaluation.report.section import one_colour
from memtrain.files.parquet_table import read_parquet
from memtrain.files.text import read_json
from memtrain.records import write_json, write_parquet

OPEN_COLUMNS = ("group", "split", "image", "own_image", "training.flagged_by")
"""Text columns that reveal nothing about a picture. Text of all other columns becomes codes."""
CLOSED_KEYS = ("key", "caption", "prompt", "template", "nearest_key", "text_prompt")
"""Keys of JSON files that hold text of the data."""
GROUPED = ("by_group",)
"""Keys of JSON files that hold mappings from values of the data, such as names of patients."""
LEFT_OUT = ("config",)
"""Keys of JSON files that hold paths and settings, which may name people."""
REMEDY = "run the stage that wrote it again, or remove it"
SHORTEST = 4
"""Smallest length of a name that is replaced inside sentences: shorter names occur in other words."""


class Codes:
    """Replaces text by codes.

    Args:
        secret: the secret of the keyed hashes; drawn at random if None.
    """

    def __init__(self, secret: str | None = None) -> None:
        self.secret = secret.encode() if secret is not None else secrets.token_bytes(32)
        self.known: set[str] = set()

    def code(self, text: str) -> str:
        """Return the code of a text; equal texts have equal codes."""
        self.known.add(text)
        return "x" + hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()[:10]

    def sentence(self, text: str) -> str:
        """Replace every known text in a sentence."""
        if text in self.known:
            return self.code(text)
        for known in self._longest_first():
            if known in text:
                text = re.sub(rf"(?<!\w){re.escape(known)}(?!\w)", self.code(known), text)
        return text

    def _longest_first(self) -> list[str]:
        found = [text for text in self.known if len(text) >= SHORTEST]
        return sorted(found, key=lambda text: (-len(text), text))


@contextmanager
def redacted_copy(folder: Path, *, secret: str | None = None) -> Iterator[Path]:
    """Make a copy of the results without text of the data; images in pages are blocks of one colour while it exists.

    Args:
        folder: the folder of the results.
        secret: the secret of the codes.

    Raises:
        DataError: if a results file cannot be read, because unknown text cannot be replaced.
    """
    codes = Codes(secret)
    with TemporaryDirectory(prefix="redacted-") as place:
        copy = Path(place)
        contents = {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.suffix == ".parquet":
                write_parquet(_table(read_parquet(path, remedy=REMEDY), codes), copy / name)
            elif path.suffix == ".png":
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).symlink_to(path.resolve())
            elif path.suffix == ".json":
                contents[name] = _read(path)
        # All files are read first: a sentence of one file may quote text of another file.
        for content in contents.values():
            _collect(content, codes)
        for name, content in contents.items():
            write_json(_json(content, codes), copy / name)
        with one_colour():
            yield copy


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except DataError as error:
        raise DataError(error.problem, expected=error.expected, remedy=REMEDY) from error


def check_redacted(page: Path) -> None:
    """Check that each image in the finished page has one colour. A page with another image is deleted.

    Raises:
        RecordError: if an image has more than one colour.
    """
    for found in re.findall(r"data:image/[^;]+;base64,([A-Za-z0-9+/=]+)", page.read_text(encoding="utf-8")):
        with Image.open(io.BytesIO(base64.b64decode(found))) as image:
            if len(image.convert("RGBA").getcolors(2) or [1, 2]) > 1:
                page.unlink()
                raise RecordError(
                    "The redacted page holds an image that was not replaced by a block of one colour, and was deleted",
                    expected="blocks of one colour only",
                    remedy="report this as a defect of the section, which has to embed images with `png_uri`",
                )


def _table(table: pa.Table, codes: Codes) -> pa.Table:
    """Replace the text of a table by codes."""
    for number, column in enumerate(table.schema):
        if (
            pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        ) and column.name not in OPEN_COLUMNS:
            values = [None if value is None else codes.code(value) for value in table[column.name].to_pylist()]
            table = table.set_column(number, column.name, pa.array(values, pa.string()))
        elif pa.types.is_nested(column.type):
            table = table.set_column(number, column.name, pa.nulls(len(table), column.type))
    return table


def _collect(content: Any, codes: Codes) -> None:
    """Remember the text of the data that a JSON file holds."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key in CLOSED_KEYS and isinstance(value, str):
                codes.known.add(value)
            elif key in CLOSED_KEYS and isinstance(value, list):
                codes.known.update(item for item in value if isinstance(item, str))
            if key in GROUPED and isinstance(value, dict):
                codes.known.update(value)
            _collect(value, codes)
    elif isinstance(content, list):
        for item in content:
            _collect(item, codes)


def _json(content: Any, codes: Codes) -> Any:
    """Replace the text of a JSON file by codes."""
    if isinstance(content, dict):
        return {
            codes.code(key) if key in codes.known else key: {} if key in LEFT_OUT else _json(value, codes)
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [_json(item, codes) for item in content]
    return codes.sentence(content) if isinstance(content, str) else content
