"""A source with made samples behind its own samples: templates and canaries.

Made samples have keys of their own and are trained on, recorded, flagged and sampled like all others.

- `key#caption0`, `key#caption1`, ...: the image of `key` under varied captions (group `varied_captions`);
- `key#image0`, `key#image1`, ...: the caption of `key` with varied images (group `varied_images`);
- `canary#0`, `canary#1`, ...: synthetic images (group `canary`).

The variants of a template take the place of their original sample and share its visits: 100 repeats in 10 variants are
10 visits of each. Nothing is written to disk. The same settings make the same samples again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from memtrain.data.canaries import Canaries, canary_caption, draw_canary
from memtrain.data.sample_table import in_columns, joined
from memtrain.data.selection import Duplicates
from memtrain.data.source import Look, Sample, SampleSource
from memtrain.data.variations import vary_caption, vary_image
from memtrain.errors import DataError
from memtrain.records import CANARY, VARIED_CAPTIONS

log = logging.getLogger(__name__)

MADE = re.compile(r"(.+)#(caption|image)?\d+")
"""Pattern of the names of made samples, with the name of the original and the kind of variant."""


@dataclass(frozen=True)
class MadeSample:
    """A sample that the data do not hold.

    Attributes:
        sample: the key and the caption.
        group: one of the three groups above.
        visits: the number of visits per epoch.
        draw: the function that makes the image, from the image of the original if there is one.
        original: the index of the original sample; None for canaries.
    """

    sample: Sample
    group: str
    visits: int
    draw: Callable[..., Image.Image]
    original: int | None = None


class PlantedSource(SampleSource):
    """The samples of another source, followed by made samples.

    Args:
        source: the other source.
        made: the samples to append.

    Raises:
        DataError: if a made sample has the key of another sample.
    """

    def __init__(self, source: SampleSource, made: Sequence[MadeSample]) -> None:
        super().__init__(source.path)
        self.source, self.made = source, list(made)
        self.samples = joined([source.samples, in_columns([one.sample for one in made])])
        self.check_samples()

    @staticmethod
    def accepts(path: str) -> bool:
        """Return False: this class wraps an open source."""
        return False

    def open_image(self, index: int) -> Image.Image:
        """Open the image of `samples[index]`; images of made samples are decoded."""
        if index < len(self.source):
            return self.source.open_image(index)
        one = self.made[index - len(self.source)]
        return one.draw() if one.original is None else one.draw(self.source.load_image(one.original))

    def load_image(self, index: int) -> Image.Image:
        """Decode the RGB image of `samples[index]` as the wrapped source does."""
        return self.source.load_image(index) if index < len(self.source) else super().load_image(index)

    def look(self, index: int, image: Image.Image | None = None) -> Look:
        """Return the size and content of the image of `samples[index]` as the wrapped source does."""
        return self.source.look(index, image) if index < len(self.source) else super().look(index, image)

    def stored_in(self, index: int) -> Path | None:
        """Return the file that holds an image, or the file of the original image."""
        place = index if index < len(self.source) else self.made[index - len(self.source)].original
        return None if place is None else self.source.stored_in(place)

    def shared(self, index: int) -> int:
        """Count the samples in that file."""
        place = index if index < len(self.source) else self.made[index - len(self.source)].original
        return 1 if place is None else self.source.shared(place)

    def known_look(self, index: int) -> Look | None:
        """Return what the wrapped source knows of the image of `samples[index]`."""
        return self.source.known_look(index) if index < len(self.source) else super().known_look(index)

    def open_mask(self, index: int) -> Image.Image | None:
        """Open the mask of an unchanged image; None for varied and synthetic images."""
        if index < len(self.source):
            return self.source.open_mask(index)
        one = self.made[index - len(self.source)]
        if one.original is None or one.group != VARIED_CAPTIONS:
            return None
        return self.source.open_mask(one.original)


def make_templates(samples: Sequence[Sample], chosen: Mapping[int, str], duplicates: Duplicates) -> list[MadeSample]:
    """Make the variants of templates.

    Args:
        samples: the samples of the source.
        chosen: `{index: group}` from :func:`memtrain.data.selection.choose_templates`.
        duplicates: the number of variants, their visits, and the seed of the variations.
    """
    made = []
    for index, group in chosen.items():
        sample, count = samples[index], duplicates.variants
        name = f"{duplicates.seed} {sample.key}"
        for number in range(count):
            visits = duplicates.highest // count + (number < duplicates.highest % count)
            if group == VARIED_CAPTIONS:
                caption = vary_caption(sample.caption, number, name=name)
                variant, draw = Sample(f"{sample.key}#caption{number}", caption), _unchanged
            else:
                variant = replace(sample, key=f"{sample.key}#image{number}")
                draw = partial(vary_image, number=number, of=count, name=name)
            made.append(MadeSample(variant, group, visits, draw, index))
    return made


def make_canaries(canaries: Canaries) -> list[MadeSample]:
    """Make the synthetic samples."""
    return [
        MadeSample(
            Sample(f"canary#{number}", canary_caption(canaries.seed, number)),
            CANARY,
            canaries.visits(number),
            partial(draw_canary, canaries.seed, number),
        )
        for number in range(canaries.total)
    ]


def was_made(key: str, keys: Collection[str]) -> bool:
    """Return whether `key` is the name of a canary, or of a variant of one of the samples `keys`."""
    found = MADE.fullmatch(key)
    return found is not None and (found[1] in keys if found[2] else found[1] == CANARY)


def require_known(excluded: Collection[str], names: Collection[str], made: Collection[str], *, path: str) -> None:
    """Refuse to exclude keys that do not exist.

    Args:
        excluded: the keys to exclude.
        names: the keys of the data.
        made: the keys of the samples that this run makes.
        path: the path of the data.

    Raises:
        DataError: if a key is neither in the data nor the name of a sample made from them.
    """
    unknown = set(excluded).difference(names, made)
    # A run with canaries or templates flags its made samples. This run may exclude them without making them.
    gone = {key for key in unknown if was_made(key, names)}
    if gone:
        log.warning("exclude names %d made sample(s) that this run does not make, such as %r", len(gone), min(gone))
    if unknown := unknown - gone:
        raise DataError(
            f"exclude names {len(unknown)} key(s) that are not in {path}, first {sorted(unknown)[:3]}",
            expected="keys of samples",
            remedy="check that the list belongs to these data",
        )


def _unchanged(image: Image.Image) -> Image.Image:
    return image
