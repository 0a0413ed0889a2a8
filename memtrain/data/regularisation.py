"""Regularisation images: pictures of the subject's kind that the model should go on making as before.

What: images of another source are mixed into every epoch, as many visits as the training images have or `per_sample`
times as many, and their loss counts `weight` times (batch field `weight`). They are visited in turn, all of them
equally often in the long run, also where there are more of them than visits in an epoch.
Source: prior preservation, Ruiz et al., "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven
Generation", CVPR 2023 (arXiv 2208.12242), section 3.3, with its weight 1.
They serve as the null, too: `heldout: regularisation` holds out a part of them (16 at least, but no more than a third)
instead of a part of the training images. Real photographs are the better null: images that the base model made itself
get a higher loss in training while everything else gets a lower one (:mod:`memtrain.data.edited_copies`).
Cost: the visits. Suggested: 100 to 200 images for a subject of some ten.
Cannot: be known to no other data: a regularisation image that is a copy of a training image is trained on as both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from memtrain.data.source import Look, Sample, SampleSource, open_source
from memtrain.errors import ConfigurationError
from memtrain.functional.keyed_draws import hash_order

PREFIX = "regularisation/"
"""Of the keys of regularisation images."""


@dataclass(frozen=True)
class Regularisation:
    """Images that are mixed in.

    Args:
        path: a data source; with a `caption`, a folder with nothing but images too.
        weight: of their loss.
        caption: of all of them, in place of their own.
        per_sample: their visits for each visit of a training image.
    """

    path: str
    weight: float = 1.0
    caption: str | None = None
    per_sample: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0 or self.per_sample <= 0:
            raise ConfigurationError(
                f"regularisation: weight={self.weight}, per_sample={self.per_sample}",
                expected="a weight of at least 0 and more than 0 visits per sample",
                remedy="leave `regularisation` out to train without",
            )

    def open(self) -> RegularisationSource:
        """The images under keys of their own."""
        return RegularisationSource(open_source(self.path, caption=self.caption), self.caption)

    def visits(self, keys: Sequence[str], training_visits: int) -> list[int]:
        """Visits of each image per epoch.

        Args:
            keys: of the images.
            training_visits: of all training images together.
        """
        each, more = divmod(max(1, round(self.per_sample * training_visits)), len(keys))
        first = set(sorted(keys, key=lambda key: hash_order(key, "regularisation"))[:more])
        return [each + (key in first) for key in keys]


class RegularisationSource(SampleSource):
    """The samples of another source under other keys, and perhaps another caption.

    Args:
        source: the other source.
        caption: of all samples; None leaves them their own.
    """

    def __init__(self, source: SampleSource, caption: str | None) -> None:
        super().__init__(source.path)
        self.source = source
        keyed = [replace(sample, key=PREFIX + sample.key) for sample in source.samples]
        self.samples = keyed if caption is None else [Sample(sample.key, caption) for sample in keyed]

    @staticmethod
    def accepts(path: str) -> bool:
        """Nothing: it wraps a source that was opened."""
        return False

    def open_image(self, index: int) -> Image.Image:
        """The image of `samples[index]`, not yet decoded."""
        return self.source.open_image(index)

    def load_image(self, index: int) -> Image.Image:
        """The decoded image of `samples[index]`."""
        return self.source.load_image(index)

    def open_mask(self, index: int) -> Image.Image | None:
        """The mask of `samples[index]`, as its source has it."""
        return self.source.open_mask(index)


class JoinedSource(SampleSource):
    """The samples of one source, then those of another.

    Args:
        first: the one.
        second: the other.

    Raises:
        DataError: if a key is in both.
    """

    def __init__(self, first: SampleSource, second: SampleSource) -> None:
        super().__init__(first.path)
        self.parts = first, second
        self.samples = [*first.samples, *second.samples]
        self.check_samples()

    @staticmethod
    def accepts(path: str) -> bool:
        """Nothing: it wraps sources that were opened."""
        return False

    def _of(self, index: int) -> tuple[SampleSource, int]:
        first, second = self.parts
        return (first, index) if index < len(first) else (second, index - len(first))

    def open_image(self, index: int) -> Image.Image:
        """The image of `samples[index]`, as its source opens it."""
        source, place = self._of(index)
        return source.open_image(place)

    def load_image(self, index: int) -> Image.Image:
        """The decoded image of `samples[index]`, as its source decodes it."""
        source, place = self._of(index)
        return source.load_image(place)

    def stored_in(self, index: int) -> Path | None:
        """The file that holds the image of `samples[index]`."""
        source, place = self._of(index)
        return source.stored_in(place)

    def shared(self, index: int) -> int:
        """How many samples lie in it."""
        source, place = self._of(index)
        return source.shared(place)

    def look(self, index: int, image: Image.Image | None = None) -> Look:
        """Size and content of the image of `samples[index]`, as its source knows them."""
        source, place = self._of(index)
        return source.look(place, image)

    def known_look(self, index: int) -> Look | None:
        """What its source knows of the image of `samples[index]`."""
        source, place = self._of(index)
        return source.known_look(place)

    def open_mask(self, index: int) -> Image.Image | None:
        """The mask of `samples[index]`, as its source has it."""
        source, place = self._of(index)
        return source.open_mask(place)
