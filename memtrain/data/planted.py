"""A source with made samples behind its own: templates and canaries.

What: made samples have keys of their own and are trained on, recorded, flagged and sampled like any other.

- `key#caption0`, `key#caption1`, ...: the image of `key` under varied captions (group `varied_captions`);
- `key#image0`, `key#image1`, ...: the caption of `key` with varied images (group `varied_images`);
- `canary#0`, `canary#1`, ...: synthetic images (group `canary`).

The variants of one template take the place of the sample that they are made from, and share its visits: 100 repeats in
10 variants are 10 visits of each. Nothing is written to disk; the same settings make the same samples again.
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
"""Names of made samples: what they are made from, and how."""


@dataclass(frozen=True)
class MadeSample:
    """A sample that the data does not hold.

    Attributes:
        sample: its key and caption.
        group: one of the three above.
        visits: per epoch.
        draw: makes its image, from the original's where there is an original.
        original: index of the sample that it is made from; None for canaries.
    """

    sample: Sample
    group: str
    visits: int
    draw: Callable[..., Image.Image]
    original: int | None = None


class PlantedSource(SampleSource):
    """The samples of another source, then made ones.

    Args:
        source: the other source.
        made: samples to append.

    Raises:
        DataError: if a made sample has the key of another one.
    """

    def __init__(self, source: SampleSource, made: Sequence[MadeSample]) -> None:
        super().__init__(source.path)
        self.source, self.made = source, list(made)
        self.samples = joined([source.samples, in_columns([one.sample for one in made])])
        self.check_samples()

    @staticmethod
    def accepts(path: str) -> bool:
        """Nothing: it wraps a source that was opened."""
        return False

    def open_image(self, index: int) -> Image.Image:
        """The image of `samples[index]`; made ones are decoded."""
        if index < len(self.source):
            return self.source.open_image(index)
        one = self.made[index - len(self.source)]
        return one.draw() if one.original is None else one.draw(self.source.load_image(one.original))

    def load_image(self, index: int) -> Image.Image:
        """The decoded RGB image of `samples[index]`, as the wrapped source decodes it."""
        return self.source.load_image(index) if index < len(self.source) else super().load_image(index)

    def look(self, index: int, image: Image.Image | None = None) -> Look:
        """Size and content of the image of `samples[index]`, as the wrapped source knows them."""
        return self.source.look(index, image) if index < len(self.source) else super().look(index, image)

    def stored_in(self, index: int) -> Path | None:
        """The file that holds an image, or that from which it is made."""
        place = index if index < len(self.source) else self.made[index - len(self.source)].original
        return None if place is None else self.source.stored_in(place)

    def shared(self, index: int) -> int:
        """How many samples lie in it."""
        place = index if index < len(self.source) else self.made[index - len(self.source)].original
        return 1 if place is None else self.source.shared(place)

    def known_look(self, index: int) -> Look | None:
        """What the wrapped source knows of the image of `samples[index]`."""
        return self.source.known_look(index) if index < len(self.source) else super().known_look(index)

    def open_mask(self, index: int) -> Image.Image | None:
        """The mask of an image that is shown unchanged; none of varied and synthetic ones."""
        if index < len(self.source):
            return self.source.open_mask(index)
        one = self.made[index - len(self.source)]
        if one.original is None or one.group != VARIED_CAPTIONS:
            return None
        return self.source.open_mask(one.original)


def make_templates(samples: Sequence[Sample], chosen: Mapping[int, str], duplicates: Duplicates) -> list[MadeSample]:
    """The variants of templates.

    Args:
        samples: of the source.
        chosen: `{index: group}` from :func:`memtrain.data.selection.choose_templates`.
        duplicates: how many variants, how often, and the seed of the variations.
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
    """The synthetic samples."""
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
    """Whether this is the name of a canary, or of a variant of one of the samples `keys`."""
    found = MADE.fullmatch(key)
    return found is not None and (found[1] in keys if found[2] else found[1] == CANARY)


def require_known(excluded: Collection[str], names: Collection[str], made: Collection[str], *, path: str) -> None:
    """Refuse to leave out what is not there.

    Args:
        excluded: keys that are to be left out.
        names: keys of the data.
        made: keys of what this run makes of them.
        path: of the data.

    Raises:
        DataError: if a key is neither among the data nor could have been made of them.
    """
    unknown = set(excluded).difference(names, made)
    # A run with canaries or templates flags what it made itself, which this one does without.
    gone = {key for key in unknown if was_made(key, names)}
    if gone:
        log.warning("exclude names %d made sample(s) that this run does not make, such as %r", len(gone), min(gone))
    if unknown := unknown - gone:
        raise DataError(
            f"exclude names {len(unknown)} key(s) that are not in {path}, first {sorted(unknown)[:3]}",
            expected="keys of samples",
            remedy="check that the list belongs to this data",
        )


def _unchanged(image: Image.Image) -> Image.Image:
    return image
