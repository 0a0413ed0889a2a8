"""Regularisation images: pictures of the subject's kind, which the model should go on making as before.

Images of another source are mixed into every epoch. They get as many visits as the training images, or
`per_sample` times as many, and their loss counts `weight` times (batch field `weight`). All of them are visited equally
often in the long run, even if an epoch has fewer visits than images.
Source: prior preservation, Ruiz et al., "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven
Generation", CVPR 2023 (arXiv 2208.12242), section 3.3, with its weight 1.
Regularisation images can also be the held-out images. `heldout: regularisation` holds out a part of them (at least 16,
but no more than a third) instead of a part of the training images. Real photographs are the better held-out images:
training gives a higher loss to images that the base model made itself, and a lower loss to everything else
(:mod:`memtrain.data.edited_copies`).
Cost: the visits. Suggested: 100 to 200 images for a subject of about ten images.
Cannot: tell copies apart: a regularisation image that is a copy of a training image is trained on as both.
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
"""Prefix of the keys of regularisation images."""


@dataclass(frozen=True)
class Regularisation:
    """Images that are mixed into the training images.

    Args:
        path: the path of a data source; with a `caption`, also a folder that holds images alone.
        weight: the weight of their loss.
        caption: one caption for all of them, in place of their own.
        per_sample: the number of their visits for each visit of a training image.
    """

    path: str
    weight: float = 1.0
    caption: str | None = None
    per_sample: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0 or self.per_sample <= 0:
            raise ConfigurationError(
                f"regularisation: weight={self.weight}, per_sample={self.per_sample}",
                expected="a weight of at least 0, and per_sample above 0",
                remedy="correct the values, or remove `regularisation` to train without such images",
            )

    def open(self) -> RegularisationSource:
        """Open the images under keys of their own."""
        return RegularisationSource(open_source(self.path, caption=self.caption), self.caption)

    def visits(self, keys: Sequence[str], training_visits: int) -> list[int]:
        """Return the visits of each image per epoch.

        Args:
            keys: the keys of the images.
            training_visits: the number of visits of all training images together.
        """
        each, more = divmod(max(1, round(self.per_sample * training_visits)), len(keys))
        first = set(sorted(keys, key=lambda key: hash_order(key, "regularisation"))[:more])
        return [each + (key in first) for key in keys]


class RegularisationSource(SampleSource):
    """The samples of another source under other keys, with their own captions or one new caption.

    Args:
        source: the other source.
        caption: the caption of all samples; None keeps their own captions.
    """

    def __init__(self, source: SampleSource, caption: str | None) -> None:
        super().__init__(source.path)
        self.source = source
        keyed = [replace(sample, key=PREFIX + sample.key) for sample in source.samples]
        self.samples = keyed if caption is None else [Sample(sample.key, caption) for sample in keyed]

    @staticmethod
    def accepts(path: str) -> bool:
        """Return False: this class wraps an open source."""
        return False

    def open_image(self, index: int) -> Image.Image:
        """Open the image of `samples[index]` without decoding it."""
        return self.source.open_image(index)

    def load_image(self, index: int) -> Image.Image:
        """Decode the image of `samples[index]`."""
        return self.source.load_image(index)

    def open_mask(self, index: int) -> Image.Image | None:
        """Open the mask of `samples[index]` in its source."""
        return self.source.open_mask(index)


class JoinedSource(SampleSource):
    """The samples of one source, followed by the samples of another source.

    Args:
        first: the source whose samples come first.
        second: the source whose samples come last.

    Raises:
        DataError: if both sources have the same key.
    """

    def __init__(self, first: SampleSource, second: SampleSource) -> None:
        super().__init__(first.path)
        self.parts = first, second
        self.samples = [*first.samples, *second.samples]
        self.check_samples()

    @staticmethod
    def accepts(path: str) -> bool:
        """Return False: this class wraps open sources."""
        return False

    def _of(self, index: int) -> tuple[SampleSource, int]:
        first, second = self.parts
        return (first, index) if index < len(first) else (second, index - len(first))

    def open_image(self, index: int) -> Image.Image:
        """Open the image of `samples[index]` in its source."""
        source, place = self._of(index)
        return source.open_image(place)

    def load_image(self, index: int) -> Image.Image:
        """Decode the image of `samples[index]` in its source."""
        source, place = self._of(index)
        return source.load_image(place)

    def stored_in(self, index: int) -> Path | None:
        """Return the file that holds the image of `samples[index]`."""
        source, place = self._of(index)
        return source.stored_in(place)

    def shared(self, index: int) -> int:
        """Count the samples in that file."""
        source, place = self._of(index)
        return source.shared(place)

    def look(self, index: int, image: Image.Image | None = None) -> Look:
        """Return the size and content of the image of `samples[index]` from its source."""
        source, place = self._of(index)
        return source.look(place, image)

    def known_look(self, index: int) -> Look | None:
        """Return what its source knows of the image of `samples[index]`."""
        source, place = self._of(index)
        return source.known_look(place)

    def open_mask(self, index: int) -> Image.Image | None:
        """Open the mask of `samples[index]` in its source."""
        source, place = self._of(index)
        return source.open_mask(place)
