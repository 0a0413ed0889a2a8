"""A folder of images with their captions beside them in text files, as kohya's scripts and OneTrainer keep them.

`cats/a.png` has its caption in `cats/a.txt` or `cats/a.caption`, UTF-8, in its first line that is not empty; further
lines are further captions, its alternatives. The key of a sample is the path of its image in the folder. Folders named
`10_cats` mean 10 visits per epoch where `repeats: from_folders` is set, and nothing otherwise. An image without a
caption is an error, unless one caption for all that have none was given (`captions.default`). Hidden files, and images
named `*.mask.png`, are no samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from PIL import Image

from memtrain.data.image_folder import folder_images, mask_beside
from memtrain.data.source import Sample, SampleSource
from memtrain.errors import DataError

SUFFIXES = (".txt", ".caption")
"""Of caption files, in the order of preference."""


class SidecarSource(SampleSource):
    """Samples of a folder with one text file per image.

    Args:
        path: the folder.
        caption: of images that have no text file; None refuses them.
    """

    takes_caption: ClassVar[bool] = True

    def __init__(self, path: str | Path, caption: str | None = None) -> None:
        super().__init__(path)
        images = folder_images(self.path)
        texts = [self._captions(image) for image in images]
        bare = [str(image.relative_to(self.path)) for image, found in zip(images, texts, strict=True) if not found]
        if bare and caption is None:
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
        self.check_samples()

    @staticmethod
    def accepts(path: str) -> bool:
        """A folder of images at least one of which has a text file."""
        folder = Path(path)
        return folder.is_dir() and any(
            image.with_suffix(suffix).is_file() for image in folder_images(folder) for suffix in SUFFIXES
        )

    @staticmethod
    def _captions(image: Path) -> list[str]:
        for suffix in SUFFIXES:
            path = image.with_suffix(suffix)
            if path.is_file():
                try:
                    lines = path.read_text(encoding="utf-8-sig").splitlines()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path} is not UTF-8: {error}", expected="UTF-8 text", remedy="save the file as UTF-8"
                    ) from error
                return [line for line in lines if line.strip()]
        return []

    def open_image(self, index: int) -> Image.Image:
        """The image of `samples[index]`, not yet decoded."""
        return Image.open(self.path / self.samples[index].key)

    def open_mask(self, index: int) -> Image.Image | None:
        """The picture `a.mask.png` beside `a.png`."""
        return mask_beside(self.path / self.samples[index].key)

    def stored_in(self, index: int) -> Path:
        """The file that is the image of `samples[index]`."""
        return self.path / self.samples[index].key
