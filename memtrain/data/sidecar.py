"""A folder of images with their captions beside them in text files, as kohya's scripts and OneTrainer keep them.

`cats/a.png` has its caption in `cats/a.txt` or `cats/a.caption`, UTF-8, in its first line that is not empty; further
lines are further captions, its alternatives. The key of a sample is the path of its image in the folder. Folders named
`10_cats` mean 10 visits per epoch where `repeats: from_folders` is set, and nothing otherwise. An image without a
caption is an error, unless one caption for all that have none was given (`captions.default`); so is an image of a kind
that is not decoded here (a.heic), unless one that is lies beside it. Two images under one name (a.png and a.jpg) share
its caption. Text files beside no image are counted in a warning. Hidden files, and images named `*.mask.png`, are no
samples. Links are followed (:mod:`memtrain.data.folder_files`).
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
"""Of caption files, in the order of preference."""
IMAGES = frozenset(DECODED) | frozenset(UNDECODED_SUFFIXES)
MOST_BYTES = 2**20
"""Size of a caption file at most."""


class SidecarSource(SampleSource):
    """Samples of a folder with one text file per image.

    Args:
        path: the folder.
        caption: of images that have no text file; None refuses them.
        reading: what becomes of broken samples.
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
                remedy="write the captions, give one for all with --data.init_args.captions.default, or move the "
                "images elsewhere",
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
        """A folder of images at least one of which has a text file."""
        folder = Path(path)
        if not folder.is_dir():
            return False
        # One is enough, as a rule; where there is none, all are looked at once more, and what is odd about them told.
        return any(map(_captioned, filter(_is_image, files_below(folder)))) or any(
            map(_captioned, folder_images(folder, quiet=True))
        )

    def _tell_of_bare_texts(self, images: set[Path]) -> None:
        """Count the texts that are of no image."""
        bare = [
            str(path.relative_to(self.path))
            for path in files_below(self.path)
            if path.suffix in SUFFIXES and path.with_suffix("") not in images
        ]
        if bare:
            log.warning(
                "%d text file(s) in %s lie beside no image and are passed over, first %s",
                len(bare),
                self.path,
                bare[:3],
            )

    @staticmethod
    def _captions(image: Path, listed: Listed) -> list[str]:
        for suffix in SUFFIXES:
            path = image.with_suffix(suffix)
            if listed.has(path):
                # Not `splitlines`: other characters that end lines, such as U+2028, stand within captions.
                lines = read_text(path, most=MOST_BYTES).replace("\r", "\n").split("\n")
                return [line for line in lines if line.strip()]
        return []

    def open_image(self, index: int) -> Image.Image:
        """The image of `samples[index]`, not yet decoded."""
        return opened_image(self.path / self.samples[index].key)

    def open_mask(self, index: int) -> Image.Image | None:
        """The picture `a.mask.png` beside `a.png`."""
        return mask_beside(self.path / self.samples[index].key)

    def stored_in(self, index: int) -> Path:
        """The file that is the image of `samples[index]`."""
        return self.path / self.samples[index].key


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and not path.name.endswith(MASK_SUFFIX)


def _captioned(image: Path) -> bool:
    return any(image.with_suffix(suffix).is_file() for suffix in SUFFIXES)
