"""A folder of images with `metadata.jsonl`, as the diffusers examples and Hugging Face `imagefolder` use it.

One line of metadata.jsonl per image: `{"file_name": "cats/a.png", "text": "a cat"}`; the caption may also stand under
`caption`. An image with several captions has a list under `texts`, beside the caption or instead of it:
`{"file_name": "a.png", "texts": ["a cat", "a sleeping cat"]}`; the first of all is the caption, the others are its
alternatives. The key of a sample is its `file_name`, without a leading `./`. Images in the folder without a line are an
error, because leaving out a photo silently is worse than asking.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from PIL import Image

from memtrain.data.source import Sample, SampleSource
from memtrain.errors import DataError

CAPTION_FIELDS = ("text", "caption")
"""Fields that may hold the caption, in this order of preference."""
ALTERNATIVES_FIELD = "texts"
"""Field that may hold a list of captions."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
"""File names that count as images when looking for ones that metadata.jsonl forgot."""


class ImageFolderSource(SampleSource):
    """Samples of a folder with `metadata.jsonl`.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.samples = [self._parse(number, line) for number, line in self._lines()]
        self._check_files()
        self.check_samples()

    @staticmethod
    def accepts(path: str) -> bool:
        """A folder with a `metadata.jsonl`."""
        return (Path(path) / "metadata.jsonl").is_file()

    def _lines(self) -> list[tuple[int, str]]:
        try:
            text = (self.path / "metadata.jsonl").read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path / 'metadata.jsonl'} is not UTF-8: {error}",
                expected="UTF-8 text",
                remedy="save the file as UTF-8",
            ) from error
        return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]

    def _parse(self, number: int, line: str) -> Sample:
        where = f"{self.path / 'metadata.jsonl'}, line {number}"
        expected = '{"file_name": "a.png", "text": "a caption"}'
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON: {error}", expected=expected, remedy="mend the line") from error
        name = row.get("file_name") if isinstance(row, dict) else None
        captions = [row[field] for field in CAPTION_FIELDS if field in row][:1] if name else []
        texts = row.get(ALTERNATIVES_FIELD, []) if name else []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{where} has no list of texts under {ALTERNATIVES_FIELD!r}: found {texts!r:.80}",
                expected='{"file_name": "a.png", "texts": ["a caption", "another one"]}',
                remedy="mend it",
            )
        if captions and not isinstance(captions[0], str):
            raise DataError(
                f"The caption in {where} is no text but {json.dumps(captions[0]):.80}",
                expected=expected,
                remedy=f"mend it; several captions of one image go into a list under {ALTERNATIVES_FIELD!r}",
            )
        captions += texts
        if not isinstance(name, str) or not captions:
            found = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(
                f"{where} lacks a file name or a caption: found {found}", expected=expected, remedy="mend it"
            )
        if not (self.path / name).resolve().is_relative_to(self.path.resolve()):
            raise DataError(
                f"{where} points outside the folder: {name!r}",
                expected="a file below the folder",
                remedy="move the image into the folder",
            )
        return Sample.of(PurePosixPath(name).as_posix(), captions)

    def _check_files(self) -> None:
        listed = {sample.key for sample in self.samples}
        missing = sorted(name for name in listed if not (self.path / name).is_file())
        if missing:
            raise DataError(
                f"{len(missing)} image(s) listed in {self.path / 'metadata.jsonl'} do not exist, first {missing[:3]}",
                expected="every listed file in the folder",
                remedy="add the files or remove their lines",
            )
        resolved = {(self.path / name).resolve() for name in listed}
        unlisted = sorted(
            str(file.relative_to(self.path))
            for file in self.path.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and file.resolve() not in resolved
        )
        if unlisted:
            raise DataError(
                f"{len(unlisted)} image(s) in {self.path} have no line in metadata.jsonl, first {unlisted[:3]}",
                expected="one line with a caption per image",
                remedy="add their captions or move them elsewhere",
            )

    def open_image(self, index: int) -> Image.Image:
        """The image of `samples[index]`, not yet decoded."""
        return Image.open(self.path / self.samples[index].key)

    def stored_in(self, index: int) -> Path:
        """The file that is the image of `samples[index]`."""
        return self.path / self.samples[index].key
