"""The choice of training samples and of their visits, from keys alone.

The held-out samples are chosen before (:mod:`memtrain.data.heldout_split`). Planted duplicates repeat chosen samples
within an epoch under their own key: the data then behave as if they held an image r times. Two further kinds of planted
samples are made in :mod:`memtrain.data.planted`, from images that are chosen here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.key_table import read_key_table
from memtrain.functional.keyed_draws import hash_order
from memtrain.records import VARIED_CAPTIONS, VARIED_IMAGES

MOST_VARIANTS = 100
"""The largest number of variants of a template."""


@dataclass(frozen=True)
class Duplicates:
    """Plant `count` images `repeats` times each per epoch, and templates, of which only one half is repeated.

    A template takes the place of the sample that it is made from. Its variants are named `key#caption0`, ... or
    `key#image0`, ..., and the first variant is the sample unchanged. All variants together have as many visits as a
    duplicate.

    Args:
        count: the number of images; with several `repeats`, the number of images for each of them.
        repeats: the visits of each image per epoch, at least 2. Several numbers make a curve of doses within one run.
        seed: the seed of the choice of images.
        keys: the keys of the images, in place of a random choice and of `count`. With several `repeats`, the keys are
            dealt out in the order given, as many to each number.
        varied_captions: the number of further images that are planted under varied captions, with the highest of
            `repeats`.
        varied_images: the number of further captions that are planted with variations of their image, with the highest
            of `repeats`.
        variants: the number of captions per image, and of images per caption, in the two templates.
        only_in: the path of the only data in which images are planted, in any spelling. With it, a configuration made
            for an experiment does not repeat the images of a user who runs it on other data.
    """

    count: int = 0
    repeats: int | tuple[int, ...] = 100
    seed: int = 0
    keys: tuple[str, ...] = ()
    only_in: str | None = None
    varied_captions: int = 0
    varied_images: int = 0
    variants: int = 10

    def __post_init__(self) -> None:
        # jsonargparse makes this of a null that an option with dots gives.
        if self.only_in == "None":
            object.__setattr__(self, "only_in", None)
        if min(self.count, self.varied_captions, self.varied_images) < 0 or min(self.doses, default=0) < 2:
            raise ConfigurationError(
                f"duplicates: count={self.count}, repeats={self.repeats}, varied_captions={self.varied_captions}, "
                f"varied_images={self.varied_images} plants nothing",
                expected="counts of at least 0 and repeats of at least 2",
                remedy="remove data.init_args.duplicates to plant none",
            )
        if len(set(self.doses)) < len(self.doses) or len(set(self.keys)) % len(self.doses):
            raise ConfigurationError(
                f"duplicates: {len(self.keys)} keys and repeats={self.repeats}",
                expected="distinct numbers of repeats, and as many keys for each",
                remedy="raise count to plant more images at one number, name more keys, or give fewer numbers",
            )
        if (self.varied_captions or self.varied_images) and not 2 <= self.variants <= min(MOST_VARIANTS, self.highest):
            raise ConfigurationError(
                f"duplicates: variants={self.variants} with repeats={self.repeats}",
                expected=f"2 to {MOST_VARIANTS} variants, and no more than repeats, so that each is visited",
                remedy="set data.init_args.duplicates.variants or data.init_args.duplicates.repeats",
            )

    @property
    def doses(self) -> tuple[int, ...]:
        """All values of `repeats`."""
        return (self.repeats,) if isinstance(self.repeats, int) else tuple(self.repeats)

    def meant_for(self, path: str) -> bool:
        """Return whether images are planted in data at `path`."""
        if self.only_in is None or self.only_in == path:
            return True
        return os.path.realpath(self.only_in) == os.path.realpath(path)

    @property
    def highest(self) -> int:
        """The visits of a template per epoch, of all variants together."""
        return max(self.doses)


def read_keys(path: str) -> frozenset[str]:
    """Read the keys from a table such as flagged.csv (:func:`memtrain.files.key_table.read_key_table`)."""
    return frozenset(read_key_table(Path(path)))


def plant(train: Sequence[int], keys: Sequence[str], duplicates: Duplicates) -> dict[int, int]:
    """Return the visits per epoch of each training sample.

    Args:
        train: the indices of the training samples.
        keys: the keys of all samples.
        duplicates: the samples to plant.

    Returns:
        `{index: visits per epoch}` in the order of `train`, without the samples whose place a template takes. The
        visits of planted samples are one of `duplicates.repeats`.

    Raises:
        DataError: if there are fewer training samples than images to plant, or if a named key is not a training sample.
    """
    doses, made = _choose(train, keys, duplicates)
    return {index: doses.get(index, 1) for index in train if index not in made}


def choose_templates(train: Sequence[int], keys: Sequence[str], duplicates: Duplicates) -> dict[int, str]:
    """Return the samples that become templates as `{index: group}`; arguments and errors as for :func:`plant`."""
    return _choose(train, keys, duplicates)[1]


def _choose(train: Sequence[int], keys: Sequence[str], duplicates: Duplicates) -> tuple[dict[int, int], dict[int, str]]:
    """Return the repeated samples with their visits, and the templates with their group. All samples differ."""
    if not (duplicates.keys or duplicates.count or duplicates.varied_captions or duplicates.varied_images):
        return {}, {}
    unknown = set(duplicates.keys) - {keys[index] for index in train}
    if unknown:
        raise DataError(
            f"duplicates.keys: {len(unknown)} key(s) are not training samples, first {sorted(unknown)[:3]}",
            expected="keys of training samples",
            remedy="check the names, and that they are not held out",
        )
    order = sorted(train, key=lambda index: hash_order(keys[index], f"duplicates {duplicates.seed}"))
    index_of = {keys[index]: index for index in train}
    named = {index_of[key]: None for key in duplicates.keys}
    each = len(named) // len(duplicates.doses) if named else duplicates.count
    groups = [VARIED_CAPTIONS] * duplicates.varied_captions + [VARIED_IMAGES] * duplicates.varied_images
    wanted = each * len(duplicates.doses) + len(groups)
    if wanted > len(train):
        raise DataError(
            f"{wanted} duplicates are asked for, but there are only {len(train)} training samples",
            expected="at most as many duplicates as training samples",
            remedy="lower data.init_args.duplicates.count, or plant fewer templates",
        )
    order = [*named, *(index for index in order if index not in named)]
    doses = dict(zip(order, [dose for dose in duplicates.doses for _ in range(each)], strict=False))
    return doses, dict(zip(order[len(doses) :], groups, strict=False))
