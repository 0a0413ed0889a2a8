"""What a source of captioned images is, and the batch contract that every trainer of this project consumes.

A **source** lists samples (`key`, `caption`) and opens one image at a time. Random access is what makes resuming
exact, held-out splits fixed, and evaluation able to find a training image again from its key.

A **batch** is a dict with

| field | type | meaning |
|---|---|---|
| `key` | `list[str]`, length B | stable name of the sample; repeated visits carry the same key |
| `caption` | `list[str]`, length B | the caption of this visit; empty where it was dropped |
| `pixel_values` | `(B, 3, H, W)` float in [-1, 1] | the image; absent when latents are cached |
| `latents` | `(B, C, h, w)` float | latents as the module encodes them; absent without a cache |
| `input_ids`, `prompt_length`, ... | `(B, ...)` | whatever the module makes of captions, by its `tokens(captions)` |
| `text_embeddings`, ... | `(B, ...)` | whatever its `encode_tokens` makes of those; absent without a cache of text |
| `original_size` | `(B, 2)` int64 | rows and columns of the image as it was |
| `crop_top_left` | `(B, 2)` int64 | rows and columns of the resized image that were cut off above and on the left |
| `target_size` | `(B, 2)` int64 | rows and columns of the pixel values |
| `weight` | `(B,)` float | of the sample's loss; absent without regularisation images |
| `loss_mask` | `(B, 1, h, w)` float | where the loss counts; absent without masks |

The three sizes are there with aspect-ratio buckets, random crops or flips. All samples of a batch are of one size.

An image may have several captions. The first is `caption`, the one that is trained on and sampled; the others are its
`alternatives`, which a visit may have where `captions` says so (:mod:`memtrain.data.caption_choice`); methods that swap
captions ask the data module for them. docs/data.md has the forms that data may have.

What every source refuses, before training and for all samples at once: keys and captions that are no UTF-8 or hold a
NUL, keys of more than `LONGEST_KEY` and captions of more than `LONGEST_CAPTION` characters, empty captions, a
key twice, and images that cannot be decoded (:mod:`memtrain.files.pictures`). Captions with control characters are
taken and counted in a warning (:mod:`memtrain.data.sample_texts`). A file that a network file system fails to read is
tried again (:mod:`memtrain.data.decoding`).
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
"""Modules of this package that hold no source, and import Lightning."""


class BrokenImageError(DataError):
    """An image cannot be read."""


@dataclass(frozen=True)
class Sample:
    """One captioned image.

    Attributes:
        key: names it for good.
        caption: its text.
        alternatives: its other captions, none equal to `caption`.
    """

    key: str
    caption: str
    alternatives: tuple[str, ...] = ()

    @classmethod
    def of(cls, key: str, captions: Sequence[str]) -> Sample:
        """A sample whose first caption is the caption and whose others are alternatives; repeated ones count once."""
        first, *others = dict.fromkeys(caption.strip() for caption in captions)
        return cls(key, first, tuple(others))


@dataclass(frozen=True)
class Look:
    """What is known of an image.

    Attributes:
        size: width and height, pixels.
        digest: SHA-256 of its pixels.
    """

    size: tuple[int, int]
    digest: str


class SampleSource(ABC):
    """A list of captioned images with random access.

    Subclasses read the listing in `__init__`, store it in `samples`, and call :meth:`check_samples`.
    """

    samples: Sequence[Sample]
    broken: list[Broken]
    """Samples that the listing names and that cannot be used; with `skip` alone, else they are refused."""
    takes_caption: ClassVar[bool] = False
    """Whether a caption for images that have none is its second argument."""
    takes_reading: ClassVar[bool] = False
    """Whether it takes `reading`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.broken: list[Broken] = []
        self._looks: dict[int, Look] = {}
        self.kept_looks: Any = None  # of memtrain.data.kept_looks

    @staticmethod
    @abstractmethod
    def accepts(path: str) -> bool:
        """Whether `path` looks like this kind of source."""

    @abstractmethod
    def open_image(self, index: int) -> Image.Image:
        """The image of `samples[index]`, not yet decoded.

        Raises:
            DataError: if the file cannot be opened as an image.
        """

    def stored_in(self, index: int) -> Path | None:
        """The file that holds the image of `samples[index]`, by which a scan knows again what it has seen.

        Returns:
            None where no file holds it as it is; every scan of such a source begins anew.
        """
        return None

    def shared(self, index: int) -> int:
        """How many samples lie in the file that holds the image of `samples[index]`."""
        return 1

    def open_mask(self, index: int) -> Image.Image | None:
        """The mask of the image of `samples[index]`, not yet decoded: white where the loss counts; None for everywhere.

        Raises:
            OSError: if it cannot be opened.
        """
        return None

    def column(self, name: str) -> dict[str, str]:
        """What else the data say of their samples, such as the patient or the artist, by key.

        Args:
            name: of a column or field of the metadata; `folder` for the folder that a file lies in.

        Raises:
            DataError: if these data have no such column, or samples without a value in it.
        """
        if name == "folder":
            return {sample.key: str(PurePosixPath(sample.key).parent) for sample in self.samples}
        values = self._column_values(name)
        without = [sample.key for sample in self.samples if values.get(sample.key) in (None, "")]
        if without:
            raise DataError(
                f"{len(without)} of {len(self)} sample(s) in {self.path} have no {name!r}, first {without[:3]}",
                expected="a column (metadata.jsonl, metadata.csv, .json of shards, data sets) with a value for each",
                remedy="check the name, fill the column in, or group by `folder`",
            )
        return {sample.key: str(values[sample.key]) for sample in self.samples}

    def _column_values(self, name: str) -> dict[str, object]:
        """What a column holds, by key; nothing where data have no columns."""
        return {}

    def __len__(self) -> int:
        return len(self.samples)

    def load_image(self, index: int) -> Image.Image:
        """The decoded RGB image of `samples[index]`, upright as its EXIF entry says; transparent parts become white.

        Raises:
            DataError: if the image cannot be read.
        """
        try:
            return decoded(lambda: self.open_image(index), name=self.samples[index].key)
        except (PictureError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BrokenImageError(
                f"The image of sample {self.samples[index].key!r} in {self.path} cannot be read: {reason(error)}",
                expected="an image file that Pillow decodes (PNG, JPEG, WebP, ...)",
                remedy="repair or remove this sample, then start again; or leave it out (--data.init_args.broken skip)",
            ) from (error.__cause__ or error)

    def look(self, index: int, image: Image.Image | None = None) -> Look:
        """Size and content of the image of `samples[index]`, which are remembered.

        Args:
            index: of the sample.
            image: its decoded image; by default it is decoded, where it is not known.

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
        """The same where it is known without decoding the image; else None."""
        if self.kept_looks is None:
            return self._looks.get(index)
        self.kept_looks.find(self)
        found: Look | None = self.kept_looks.get(index)
        return found

    def check_samples(self) -> None:
        """Refuse an empty source, keys and captions that are none, and a key that names two samples.

        Raises:
            DataError: naming the samples concerned.
        """
        require_samples(self.samples, self.path)


def _opened(kind: Any, path: str, caption: str | None, reading: Reading | None) -> SampleSource:
    given = {"reading": reading} if kind.takes_reading else {}
    found: SampleSource = kind(path, caption, **given) if kind.takes_caption else kind(path, **given)
    return found


def open_source(path: str, *, caption: str | None = None, reading: Reading | None = None) -> SampleSource:
    """Open `path` with the source class that accepts it; classes are found by walking this package.

    Args:
        path: of the data.
        caption: of images that have none; then a folder may hold nothing but images.
        reading: what becomes of broken samples, and where listings are kept.

    Raises:
        DataError: if nothing is there, or no source reads it.
    """
    package = importlib.import_module(__package__ or "memtrain.data")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in WITH_LIGHTNING:
            importlib.import_module(f"{package.__name__}.{module.name}")
    kinds: list[Any] = sorted(SampleSource.__subclasses__(), key=lambda kind: kind.__name__)
    if not path.strip():
        raise DataError("The path of the data is empty", expected="a folder, shards or a data set", remedy="name it")
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
            expected="files and folders that may be read",
            remedy="check the path and its permissions",
        ) from error
    found = f"{path!r} exists but is no data source"
    if not Path(path).exists():
        found = f"The data path {path!r} does not exist"
    elif Path(path).is_file():
        found += packed(Path(path))
    folder: Any = importlib.import_module("memtrain.data.folder_files")
    if Path(path).is_dir() and (images := len(folder.folder_images(Path(path)))):
        found = f"The folder {path!r} holds images ({images}) and no captions"
    raise DataError(
        found,
        expected="a folder of images with metadata.jsonl or metadata.csv, or with a text file beside each image (a.txt "
        "for a.png), WebDataset shards (a .tar file, a pattern such as 'shards/{0000..0009}.tar', or a folder of .tar "
        "files), or `datasets:` and the name or folder of a Hugging Face data set",
        remedy="check the path; a folder of images without captions takes one for all of them "
        "(data.init_args.captions.default), or needs a metadata.jsonl with one line per image: "
        '{"file_name": "a.png", "text": "a caption"}',
    )
