"""Results without what could be recognised: for pages about images that must not leave the house.

Sections are made from a copy of the folder in which captions, keys and all other text of tables are codes, and while
it is there every image that goes into a page becomes one block of its average colour. A blur could be undone, and its
shape would still be seen; one colour holds three numbers. Codes are keyed hashes (HMAC-SHA-256): without the secret
nobody can find a caption by trying likely ones, and equal ones stay equal, so that a row can still be followed.

Cannot: keep from the page what figures say, such as how many pictures there are of a group; hide what a picture drawn
by a stage shows in its words, which is why those become blocks, too.
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
"""Text in tables that says nothing of a picture: all other text becomes codes."""
CLOSED_KEYS = ("key", "caption", "prompt", "template", "nearest_key", "text_prompt")
"""Keys of JSON files under which text of the data stands."""
GROUPED = ("by_group",)
"""Keys of JSON files whose keys are values of the data, such as names of patients."""
LEFT_OUT = ("config",)
"""Keys of JSON files that hold paths and settings, which may name people."""
REMEDY = "run the stage that wrote it again, or remove it"
SHORTEST = 4
"""Characters of a name that is looked for inside sentences, too: shorter ones would be found in other words."""


class Codes:
    """Replaces text by codes.

    Args:
        secret: of the codes; drawn at random if None.
    """

    def __init__(self, secret: str | None = None) -> None:
        self.secret = secret.encode() if secret is not None else secrets.token_bytes(32)
        self.known: set[str] = set()

    def code(self, text: str) -> str:
        """Of one text; the same for equal ones."""
        self.known.add(text)
        return "x" + hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()[:10]

    def sentence(self, text: str) -> str:
        """A sentence with every known text in it replaced."""
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
    """A folder of the same results without text of the data; while it exists, images in pages are blocks of one colour.

    Args:
        folder: of the results.
        secret: of the codes.

    Raises:
        DataError: if one of the results cannot be read: what is not known cannot be replaced.
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
        # What is to be replaced is known once all files were read: sentences of one may quote another.
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
    """Make sure of the finished page: each image inside it has one colour. A page that does not is deleted.

    Raises:
        RecordError: if an image shows more.
    """
    for found in re.findall(r"data:image/[^;]+;base64,([A-Za-z0-9+/=]+)", page.read_text(encoding="utf-8")):
        with Image.open(io.BytesIO(base64.b64decode(found))) as image:
            if len(image.convert("RGBA").getcolors(2) or [1, 2]) > 1:
                page.unlink()
                raise RecordError(
                    "A section put an image into the redacted page by another way than `png_uri`",
                    expected="blocks of one colour only",
                    remedy="report this; the page was deleted",
                )


def _table(table: pa.Table, codes: Codes) -> pa.Table:
    """A table whose text is codes."""
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
    """Remember the text of the data in a JSON file."""
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
    """A JSON file's content with codes."""
    if isinstance(content, dict):
        return {
            codes.code(key) if key in codes.known else key: {} if key in LEFT_OUT else _json(value, codes)
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [_json(item, codes) for item in content]
    return codes.sentence(content) if isinstance(content, str) else content
