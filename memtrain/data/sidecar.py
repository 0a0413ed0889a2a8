"""A folder of images with captions in text files beside them, as kohya's scripts and OneTrainer keep them.

The caption of `cats/a.png` is in `cats/a.txt` or `cats/a.caption` (UTF-8), in the first line that is not empty. Further
lines are further captions, its alternatives. The key of a sample is the path of its image in the folder. A folder named
`10_cats` means 10 visits per epoch with `repeats: from_folders`, and nothing otherwise.

An image without a caption is an error, unless `captions.default` gives one caption to all images that have none. An
image of a kind that is not decoded (a.heic) is an error, unless a decoded image with its name lies beside it. Two
images with one name (a.png and a.jpg) share its caption. A warning counts text files without an image. Hidden files and
images named `*.mask.png` are not samples. Links are followed (:mod:`memtrain.data.folder_files`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar

from PIL import Image

from memtrain.data.broken import Broken
from memtrain.data.folder_files import MASK_SUFFIX, Listed, files_below, folder_images, require_decoded, tell_of_links
from memtrain.data.image_folder import mask_beside
from memtrain.data.reading import Reading
from memtrain.data.source import Sample, SampleSource
from memtrain.errors import DataError
from memtrain.files.pictures import SUFFIXES as DECODED
from memtrain.files.pictures import UNDECODED_SUFFIXES, opened_image
from memtrain.files.text import read_text

log = logging.getLogger(__name__)
SUFFIXES = (".txt", ".caption", ".TXT", ".CAPTION")
"""Endings of caption files, in the order of preference."""
IMAGES = frozenset(DECODED) | frozenset(UNDECODED_SUFFIXES)
MOST_BYTES = 2**20
"""The largest size of a caption file in bytes."""


class SidecarSource(SampleSource):
    """Samples of a folder with one text file per image.

    Args:
        path: the folder.
        caption: the caption of images that have no text file; None refuses such images.
        reading: the treatment of broken samples.
    """

    takes_caption: ClassVar[bool] = True

    takes_reading = True

    def __init__(self, path: str | Path, caption: str | None = None, reading: Reading | None = None) -> None:
        super().__init__(path)
        reading = reading or Reading()
        listed = Listed()
        images = folder_images(self.path, listed=listed)
        require_decoded(self.path, images)
        texts = [self._captions(image, listed) for image in images]
        bare = [str(image.relative_to(self.path)) for image, found in zip(images, texts, strict=True) if not found]
        if bare and caption is None and reading.skip and not reading.stops:
            self.broken = [Broken(name, str(self.path / name), "there is no caption beside it") for name in bare]
            kept = [(image, found) for image, found in zip(images, texts, strict=True) if found]
            images, texts = [image for image, _ in kept], [found for _, found in kept]
        elif bare and caption is None:
            raise DataError(
                f"{len(bare)} of {len(images)} image(s) in {self.path} have no caption, first {sorted(bare)[:3]}",
                expected="a text file beside each image: a.txt (or a.caption) for a.png",
                remedy="write the captions, set one for all with --data.init_args.captions.default, or move the "
                "images to "
                "another folder",
            )
        self.samples = [
            Sample.of(image.relative_to(self.path).as_posix(), found or [caption or ""])
            for image, found in zip(images, texts, strict=True)
        ]
        if self.samples or not self.broken:
            self.check_samples()
        tell_of_links(self.path, images, listed)
        self._tell_of_bare_texts({image.with_suffix("") for image in images})

    @staticmethod
    def accepts(path: str) -> bool:
        """Return whether the path is a folder of images, at least one of which has a text file."""
        folder = Path(path)
        if not folder.is_dir():
            return False
        # One captioned image is usually found at once. If there is none, the second look also refuses odd files.
        return any(map(_captioned, filter(_is_image, files_below(folder)))) or any(
            map(_captioned, folder_images(folder, quiet=True))
        )

    def _tell_of_bare_texts(self, images: set[Path]) -> None:
        """Warn of text files without an image."""
        bare = [
            str(path.relative_to(self.path))
            for path in files_below(self.path)
            if path.suffix in SUFFIXES and path.with_suffix("") not in images
        ]
        if bare:
            log.warning(
                "%d text file(s) in %s lie beside no image and are ignored, first %s",
                len(bare),
                self.path,
                bare[:3],
            )

    @staticmethod
    def _captions(image: Path, listed: Listed) -> list[str]:
        for suffix in SUFFIXES:
            path = image.with_suffix(suffix)
            if listed.has(path):
                # Not `splitlines`: it also splits at characters such as U+2028, which occur within captions.
                lines = read_text(path, most=MOST_BYTES).replace("\r", "\n").split("\n")
                return [line for line in lines if line.strip()]
        return []

    def open_image(self, index: int) -> Image.Image:
        """Open the image of `samples[index]` without decoding it."""
        return opened_image(self.path / self.samples[index].key)

    def open_mask(self, index: int) -> Image.Image | None:
        """Open the picture `a.mask.png` beside `a.png`."""
        return mask_beside(self.path / self.samples[index].key)

    def stored_in(self, index: int) -> Path:
        """Return the image file of `samples[index]`."""
        return self.path / self.samples[index].key


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and not path.name.endswith(MASK_SUFFIX)


def _captioned(image: Path) -> bool:
    return any(image.with_suffix(suffix).is_file() for suffix in SUFFIXES)
