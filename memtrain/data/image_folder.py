"""A folder of images with `metadata.jsonl` or `metadata.csv`, as Hugging Face `imagefolder` reads it.

`metadata.jsonl` has one line per image: `{"file_name": "cats/a.png", "text": "a cat"}`. The caption may also have the
name `caption`. An image with several captions has a list `texts`, in addition to the caption or instead of it:
`{"file_name": "a.png", "texts": ["a cat", "a sleeping cat"]}`. The first of all these texts is the caption, and the
others are its alternatives. `metadata.csv` has a header with `file_name` and `text` (or `caption`), and a row per
image.

The key of a sample is its `file_name` without `./`. The optional field `mask_file` names the picture of a mask. Hidden
files and files named `*.mask.png` are not samples. Every other image in the folder needs a line, because leaving out a
photo silently is worse than asking. Names that lead out of the folder are refused, and links in the folder are followed
(:mod:`memtrain.data.folder_files` gives the reason). A duplicate name, an image of a kind that is not decoded, and
text that is not UTF-8 or not JSON are refused with their line. If a folder has both tables, the first is read, and
a warning says so.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

from PIL import Image

from memtrain.data.broken import Broken
from memtrain.data.folder_files import MASK_SUFFIX, Listed, folder_images, named_file, require_decoded, tell_of_links
from memtrain.data.reading import Reading
from memtrain.data.source import Sample, SampleSource
from memtrain.errors import DataError
from memtrain.files.pictures import opened_image
from memtrain.files.text import json_of, read_text

log = logging.getLogger(__name__)
CAPTION_FIELDS = ("text", "caption")
"""Fields that may hold the caption, in the order of preference."""
ALTERNATIVES_FIELD = "texts"
"""Field that may hold a list of captions."""
MASK_FIELD = "mask_file"
"""Field that may name the picture of a mask."""
METADATA = ("metadata.jsonl", "metadata.csv")
"""Names of the file with the captions, in the order of preference."""
EXPECTED = '{"file_name": "a.png", "text": "a caption"}'
"""An example of a line of metadata.jsonl."""
SEVERAL = '{"file_name": "a.png", "texts": ["a caption", "another one"]}'
"""An example of a line with several captions."""


def mask_beside(image: Path) -> Image.Image | None:
    """Open the mask `a.mask.png` of `a.png`; None if there is no such file."""
    path = image.with_suffix(MASK_SUFFIX)
    return opened_image(path) if path.is_file() else None


class ImageFolderSource(SampleSource):
    """Samples of a folder with `metadata.jsonl` or `metadata.csv`.

    Args:
        path: the folder.
        reading: the treatment of broken samples.
    """

    takes_reading = True

    def __init__(self, path: str | Path, reading: Reading | None = None) -> None:
        super().__init__(path)
        self._reading = reading or Reading()
        there = [name for name in METADATA if (self.path / name).is_file()]
        self._metadata = self.path / there[0]
        if len(there) > 1:
            log.warning("%s has %s. The first is read.", self.path, " and ".join(there))
        self._masks: dict[str, str] = {}
        listed = Listed()
        self.samples = [self._parse(where, row, listed) for where, row in self._rows()]
        self._check_files(listed)
        if self.samples or not self.broken:
            self.check_samples()

    @staticmethod
    def accepts(path: str) -> bool:
        """Return whether the path is a folder with a `metadata.jsonl` or a `metadata.csv`."""
        return any((Path(path) / name).is_file() for name in METADATA)

    def _rows(self) -> list[tuple[str, Any]]:
        """Return the place and the content of each row."""
        text = read_text(self._metadata)
        if self._metadata.suffix == ".csv":
            return self._table(text)
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [(where := f"{self._metadata}, line {number}", json_of(line, where)) for number, line in lines]

    def _table(self, text: str) -> list[tuple[str, Any]]:
        first = text.partition("\n")[0]
        delimiter = ";" if first.count(";") > first.count(",") else ","
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        rows: list[tuple[str, Any]] = []
        try:
            known = ("file_name", *CAPTION_FIELDS)
            given = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header = [name.lower() if name.lower() in known else name for name in given]
            if len(set(header)) < len(header):
                raise csv.Error(f"a column occurs twice in {header}")
            # `csv` gives None for missing values of a short row, and puts surplus values of a long row under None.
            for row in reader:
                where = f"{self._metadata}, line {reader.line_num}"
                if None in row:
                    raise csv.Error(f"line {reader.line_num} has {len(row[None])} value(s) too many")
                rows.append((where, {name: value for name, value in row.items() if value}))
        except csv.Error as error:
            raise DataError(
                f"{self._metadata} cannot be read as CSV: {error}",
                expected='a header `file_name,text` and one row per image, with captions that hold a comma in "quotes"',
                remedy="correct this line of the file",
            ) from error
        return rows

    def _parse(self, where: str, row: Any, listed: Listed) -> Sample:
        expected = EXPECTED
        name = row.get("file_name") if isinstance(row, dict) else None
        captions = [row[field] for field in CAPTION_FIELDS if field in row][:1] if name else []
        texts = row.get(ALTERNATIVES_FIELD, []) if name else []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{where} has no list of texts under {ALTERNATIVES_FIELD!r}: found {texts!r:.80}",
                expected=SEVERAL,
                remedy="correct this line",
            )
        if captions and not isinstance(captions[0], str):
            raise DataError(
                f"The caption in {where} is not a text: found {json.dumps(captions[0]):.80}",
                expected=expected,
                remedy=f"correct this line; put several captions of one image into a list under {ALTERNATIVES_FIELD!r}",
            )
        captions += texts
        if not isinstance(name, str) or not captions:
            found = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(
                f"{where} lacks a file name or a caption: found {found!s:.200}",
                expected=expected,
                remedy="correct this line",
            )
        key = named_file(self.path, name, where, listed)
        if row.get(MASK_FIELD):
            self._masks[key] = named_file(self.path, row[MASK_FIELD], f"{where}, {MASK_FIELD},", listed)
        return Sample.of(key, captions)

    def _column_values(self, name: str) -> dict[str, object]:
        listed = Listed()
        return {named_file(self.path, row["file_name"], where, listed): row.get(name) for where, row in self._rows()}

    def _check_files(self, listed: Listed) -> None:
        names = {sample.key for sample in self.samples}
        missing = sorted(name for name in names if not listed.has(self.path / name))
        if missing and self._reading.skip and not self._reading.stops:
            self.broken = [Broken(name, str(self.path / name), "the file does not exist") for name in missing]
            gone = set(missing)
            self.samples = [sample for sample in self.samples if sample.key not in gone]
        elif missing:
            lowered = {str(file.relative_to(self.path)).lower() for file in folder_images(self.path, quiet=True)}
            other_case = sum(name.lower() in lowered for name in missing)
            first = [name[:80] for name in missing[:3]]
            raise DataError(
                f"{len(missing)} image(s) listed in {self._metadata} do not exist, first {first}"
                + (f"; {other_case} of them exist with upper and lower case changed (A for a)" if other_case else ""),
                expected="every listed file in the folder",
                remedy="add the files, remove their lines, or leave them out (--data.init_args.broken skip)",
            )
        masks = sorted(name for name in self._masks.values() if not listed.has(self.path / name))
        if masks:
            raise DataError(
                f"{len(masks)} mask(s) listed in {self._metadata} do not exist, first {masks[:3]}",
                expected="every listed file in the folder",
                remedy=f"add the files or remove `{MASK_FIELD}` from their lines",
            )
        named = {self.path / name for name in [*names, *self._masks.values()]}
        others = [file for file in folder_images(self.path, listed=listed) if file not in named]
        # A link beside the file that it leads to is the same file again.
        resolved = {path.resolve() for path in named} if others else set()
        unlisted = [str(file.relative_to(self.path)) for file in others if file.resolve() not in resolved]
        if unlisted:
            raise DataError(
                f"{len(unlisted)} image(s) in {self.path} have no line in {self._metadata.name}, first {unlisted[:3]}",
                expected="one line with a caption per image",
                remedy="add their captions, or move the images to another folder",
            )
        files = [self.path / sample.key for sample in self.samples]
        require_decoded(self.path, files)
        tell_of_links(self.path, files, listed)

    def open_image(self, index: int) -> Image.Image:
        """Open the image of `samples[index]` without decoding it."""
        return opened_image(self.path / self.samples[index].key)

    def open_mask(self, index: int) -> Image.Image | None:
        """Open the picture that `mask_file` names, or else the mask beside the image that has its name."""
        key = self.samples[index].key
        return mask_beside(self.path / key) if key not in self._masks else opened_image(self.path / self._masks[key])

    def stored_in(self, index: int) -> Path:
        """Return the image file of `samples[index]`."""
        return self.path / self.samples[index].key
