"""The base class of all sources of captioned images, and the batch contract of every trainer in memtrain.

A **source** lists samples (`key`, `caption`) and opens one image at a time. Random access makes resuming exact and
held-out splits fixed. It also lets an evaluation find a training image again from its key.

A **batch** is a dict with

| field | type | meaning |
|---|---|---|
| `key` | `list[str]`, length B | stable name of the sample; repeated visits carry the same key |
| `caption` | `list[str]`, length B | the caption of this visit; empty if caption dropout removed it |
| `pixel_values` | `(B, 3, H, W)` float in [-1, 1] | the image; absent when latents are cached |
| `latents` | `(B, C, h, w)` float | latents as the module encodes them; absent without a cache |
| `input_ids`, `prompt_length`, ... | `(B, ...)` | the fields that the module's `tokens(captions)` returns |
| `text_embeddings`, ... | `(B, ...)` | the fields that its `encode_tokens` returns; absent without a cache of text |
| `original_size` | `(B, 2)` int64 | rows and columns of the original image |
| `crop_top_left` | `(B, 2)` int64 | rows and columns of the resized image that were cut off at the top and the left |
| `target_size` | `(B, 2)` int64 | rows and columns of the pixel values |
| `weight` | `(B,)` float | weight of the sample's loss; absent without regularisation images |
| `loss_mask` | `(B, 1, h, w)` float | the places where the loss counts; absent without masks |

The three sizes are present with aspect-ratio buckets, random crops or flips. All samples of a batch have one size.

An image may have several captions. The first one is `caption`, which is trained on and sampled. The others are its
`alternatives`. The option `captions` decides whether visits use them (:mod:`memtrain.data.caption_choice`). Methods
that swap captions ask the data module for them. docs/data.md describes the supported layouts of data.

Every source refuses unusable samples before training, all of them at once. Its keys are unique. Keys and captions are
UTF-8 without NUL. A key has at most `LONGEST_KEY` characters, and a caption from one to `LONGEST_CAPTION` characters.
Images can be decoded (:mod:`memtrain.files.pictures`). Captions with control characters are accepted and counted in a
warning (:mod:`memtrain.data.sample_texts`). When a network file system fails to read a file, the read is tried again
(:mod:`memtrain.data.decoding`).
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from PIL import Image

from memtrain.data.broken import Broken
from memtrain.data.decoding import decoded
from memtrain.data.mixed_folders import packed, require_one_kind
from memtrain.data.reading import Reading
from memtrain.data.sample_texts import LONGEST_KEY, require_samples
from memtrain.errors import DataError
from memtrain.families.exact import pixel_hash
from memtrain.files.pictures import PictureError, reason
from memtrain.files.shipped import at_hand

WITH_LIGHTNING = ("module", "visited_images", "masked_images", "filled_images", "streamed")
"""Modules of this package that import Lightning and hold no source."""
EXAMPLE = '{"file_name": "a.png", "text": "a caption"}'
"""A line of metadata.jsonl."""


class BrokenImageError(DataError):
    """An image that cannot be read."""


@dataclass(frozen=True)
class Sample:
    """One captioned image.

    Attributes:
        key: the permanent name of the sample.
        caption: the text that is trained on.
        alternatives: the other captions, all different from `caption`.
    """

    key: str
    caption: str
    alternatives: tuple[str, ...] = ()

    @classmethod
    def of(cls, key: str, captions: Sequence[str]) -> Sample:
        """Make a sample from its captions: the first is `caption`, the others are alternatives without repeats."""
        first, *others = dict.fromkeys(caption.strip() for caption in captions)
        return cls(key, first, tuple(others))


@dataclass(frozen=True)
class Look:
    """The size and the content hash of an image.

    Attributes:
        size: width and height, pixels.
        digest: SHA-256 of the pixels, in hexadecimal.
    """

    size: tuple[int, int]
    digest: str


class SampleSource(ABC):
    """A list of captioned images with random access.

    Subclasses read the listing in `__init__`, store it in `samples`, and call :meth:`check_samples`.
    """

    samples: Sequence[Sample]
    broken: list[Broken]
    """Samples of the listing that cannot be used. They are collected with `skip`; otherwise the source refuses them."""
    takes_caption: ClassVar[bool] = False
    """Whether the second argument of the class is a caption for images that have none."""
    takes_reading: ClassVar[bool] = False
    """Whether the class takes the argument `reading`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.broken: list[Broken] = []
        self._looks: dict[int, Look] = {}
        self.kept_looks: Any = None  # of memtrain.data.kept_looks

    @staticmethod
    @abstractmethod
    def accepts(path: str) -> bool:
        """Return whether `path` looks like this kind of source."""

    @abstractmethod
    def open_image(self, index: int) -> Image.Image:
        """Open the image of `samples[index]` without decoding it.

        Raises:
            DataError: if the file cannot be opened as an image.
        """

    def stored_in(self, index: int) -> Path | None:
        """Return the file that holds the image of `samples[index]`. A scan recognizes images by it.

        Returns:
            The path; None if no file holds the image as it is. Every scan of such a source starts from the beginning.
        """
        return None

    def shared(self, index: int) -> int:
        """Count the samples that lie in the file with the image of `samples[index]`."""
        return 1

    def open_mask(self, index: int) -> Image.Image | None:
        """Open the mask of the image of `samples[index]` without decoding it.

        Returns:
            A picture that is white where the loss counts; None if the loss counts everywhere.

        Raises:
            OSError: if the mask cannot be opened.
        """
        return None

    def column(self, name: str) -> dict[str, str]:
        """Read another column of the metadata, such as the patient or the artist, by key.

        Args:
            name: the name of a column or field of the metadata; `folder` means the folder that holds the file.

        Raises:
            DataError: if the data have no such column, or if samples have no value in it.
        """
        if name == "folder":
            return {sample.key: str(PurePosixPath(sample.key).parent) for sample in self.samples}
        values = self._column_values(name)
        without = [sample.key for sample in self.samples if values.get(sample.key) in (None, "")]
        if without:
            raise DataError(
                f"{len(without)} of {len(self)} sample(s) in {self.path} have no {name!r}, first {without[:3]}",
                expected="a column (metadata.jsonl, metadata.csv, .json of shards, data sets) with a value for each",
                remedy="check the name of the column, add the missing values, or group by `folder`",
            )
        return {sample.key: str(values[sample.key]) for sample in self.samples}

    def _column_values(self, name: str) -> dict[str, object]:
        """Read the values of a column, by key; an empty dict if the data have no columns."""
        return {}

    def __len__(self) -> int:
        return len(self.samples)

    def load_image(self, index: int) -> Image.Image:
        """Decode the image of `samples[index]` to RGB, upright by its EXIF entry. Transparent parts become white.

        Raises:
            DataError: if the image cannot be read.
        """
        try:
            return decoded(lambda: self.open_image(index), name=self.samples[index].key)
        except (PictureError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BrokenImageError(
                f"The image of sample {self.samples[index].key!r} in {self.path} cannot be read: {reason(error)}",
                expected="an image file that Pillow decodes (PNG, JPEG, WebP, ...)",
                remedy="repair or remove this sample and start again, or leave it out (--data.init_args.broken skip)",
            ) from (error.__cause__ or error)

    def look(self, index: int, image: Image.Image | None = None) -> Look:
        """Return the size and content of the image of `samples[index]`, and remember them.

        Args:
            index: the index of the sample.
            image: the decoded image; by default this method decodes it if its look is not known.

        Raises:
            DataError: if the image cannot be read.
        """
        if (known := self.known_look(index)) is not None:
            return known
        image = self.load_image(index) if image is None else image
        found = Look(image.size, pixel_hash(image).hex())
        if self.kept_looks is None:
            self._looks[index] = found
        else:
            self.kept_looks.put(index, found)
        return found

    def known_look(self, index: int) -> Look | None:
        """Return the same if it is known without decoding the image; otherwise None."""
        if self.kept_looks is None:
            return self._looks.get(index)
        self.kept_looks.find(self)
        found: Look | None = self.kept_looks.get(index)
        return found

    def check_samples(self) -> None:
        """Refuse an empty source, unusable keys and captions, and duplicate keys.

        Raises:
            DataError: with the names of the samples concerned.
        """
        require_samples(self.samples, self.path)


def _opened(kind: Any, path: str, caption: str | None, reading: Reading | None) -> SampleSource:
    given = {"reading": reading} if kind.takes_reading else {}
    found: SampleSource = kind(path, caption, **given) if kind.takes_caption else kind(path, **given)
    return found


def open_source(path: str, *, caption: str | None = None, reading: Reading | None = None) -> SampleSource:
    """Open `path` with the source class that accepts it. The classes are found by walking this package.

    Args:
        path: the path of the data.
        caption: the caption of images that have none; with it, a folder may hold images alone.
        reading: the treatment of broken samples, and the folder of kept listings.

    Raises:
        DataError: if the path does not exist, or if no source reads it.
    """
    package = importlib.import_module(__package__ or "memtrain.data")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in WITH_LIGHTNING:
            importlib.import_module(f"{package.__name__}.{module.name}")
    kinds: list[Any] = sorted(SampleSource.__subclasses__(), key=lambda kind: kind.__name__)
    if not path.strip():
        raise DataError(
            "The path of the data is empty",
            expected="a folder, shards or a data set",
            remedy="set it with --data.init_args.path",
        )
    path = at_hand(path)
    try:
        require_one_kind(path, captioned=caption is not None)
        for kind in kinds:
            if kind.accepts(path):
                return _opened(kind, path, caption, reading)
        if caption is not None and Path(path).is_dir():
            return _opened(next(kind for kind in kinds if kind.takes_caption), path, caption, reading)
    except OSError as error:  # permissions, names that are too long, disks that fail
        raise DataError(
            f"The data at {path[:LONGEST_KEY]!r} cannot be read: {error}",
            expected="files and folders that you may read",
            remedy="check the path and its permissions",
        ) from error
    found = f"{path!r} exists but is not a data source"
    if not Path(path).exists():
        found = f"The data path {path!r} does not exist"
    elif Path(path).is_file():
        found += packed(Path(path))
    folder: Any = importlib.import_module("memtrain.data.folder_files")
    if Path(path).is_dir() and (images := len(folder.folder_images(Path(path)))):
        found = f"The folder {path!r} holds {images} image(s) and no captions"
    raise DataError(
        found,
        expected="a folder of images with metadata.jsonl or metadata.csv, or with a text file beside each image (a.txt "
        "for a.png); WebDataset shards and Hugging Face data sets are read, too (docs/data.md)",
        remedy="check the path. If the images have no captions, set one caption for all of them "
        f"(--data.init_args.captions.default) or write a metadata.jsonl with one line per image, such as {EXAMPLE}",
    )
