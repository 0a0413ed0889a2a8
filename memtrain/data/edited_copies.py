"""Edited copies of the training images as held-out samples, where there are too few images to hold any out.

What: each picture turned, mirrored or with its colour channels exchanged, under its own caption. What is learned by
heart about a picture helps little with such a copy, and what the model learns of the subject, the style and the
captions helps with both. So the copies show what "not memorized" looks like in this run, and every image is trained on.
Source: ours; comparing a sample with neighbours made from itself is the neighbourhood attack on language models
(Mattern et al., "Membership Inference Attacks against Language Models via Neighbourhood Comparison", ACL 2023).
Chosen by measurement (benchmarks/RESULTS.md, "Few images"). Change of the log loss since the base model on 12 pictures,
after 60 steps: training pictures −0.5, other real pictures +0.1 to +0.2, quarter turns and exchanged colours −0.1 to
+0.05; images that the base model makes for the same captions +0.6 to +0.8. So made images, which prior preservation
uses, are no null: the model leaves the domain that they come from, and whatever is trained on would be flagged at once.
Edited copies err on the other side: while a picture is memorized, its copies follow it by about a sixth of the way.
What a false-positive rate means with them: a rate among edited copies of the user's own pictures. The copies of a
picture count as different samples although they resemble each other, so with few pictures the rate is rough.
Cost: three copies of each picture are measured, more of fewer than eight pictures.
Cannot: notice that a picture is memorized which its copies resemble (a grey disc, a plain pattern), nor say how well
the subject generalises; real held-out images do that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from memtrain.data.planted import MadeSample, PlantedSource
from memtrain.data.source import Sample, SampleSource
from memtrain.families.table import FamilyIndex
from memtrain.functional.statistics import MINIMUM_CALIBRATING
from memtrain.records import HELDOUT

log = logging.getLogger(__name__)

EACH = 3
"""Copies of a picture at least."""
ALTOGETHER = 24
"""Copies of all pictures at least, as long as there are edits left."""


@dataclass(frozen=True)
class Edit:
    """What is done to an image.

    Attributes:
        quarters: counter-clockwise quarter turns.
        mirrored: exchanges left and right, before it is turned.
        channels: where red, green and blue are taken from.
    """

    quarters: int = 0
    mirrored: bool = False
    channels: str = "RGB"

    def apply(self, image: Image.Image) -> Image.Image:
        """The edited copy of an RGB image."""
        bands = dict(zip("RGB", image.split(), strict=True))
        image = Image.merge("RGB", [bands[name] for name in self.channels])
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image.transpose(_TURNS[self.quarters]) if self.quarters else image


_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}

EDITS = (
    Edit(quarters=1),
    Edit(quarters=3, channels="GBR"),
    Edit(mirrored=True, channels="BRG"),
    Edit(quarters=3),
    Edit(quarters=1, channels="BRG"),
    Edit(mirrored=True, channels="GBR"),
    Edit(quarters=1, mirrored=True, channels="GBR"),
    Edit(quarters=3, mirrored=True, channels="BRG"),
    Edit(quarters=2, channels="GBR"),
    Edit(quarters=2, channels="BRG"),
    Edit(quarters=2),
)
"""In the order in which they are used: first what follows a picture least while it is memorized."""


def copies_each(pictures: int) -> int:
    """How many copies are made of each of so many pictures."""
    return min(len(EDITS), max(EACH, math.ceil(ALTOGETHER / pictures)))


def wants_copies(
    setting: str, keys: Sequence[str], *, families: FamilyIndex | None, fraction: float, held: int
) -> bool:
    """Whether edited copies take the place of held-out images; says so where that was not asked for.

    Args:
        setting: `edited`, `split`, or `auto`, which is the first where a split holds out too few for a threshold.
        keys: of the data.
        families: what is one picture; by default every sample is.
        fraction: that is to be held out; 0 is a decision to hold out nothing.
        held: pictures that a split would hold out.
    """
    if setting != "auto":
        return setting == "edited"
    if fraction == 0 or held >= MINIMUM_CALIBRATING:
        return False
    log.warning(
        "Of %d picture(s) too few can be held out for a threshold (%d; it takes %d). So all of them are trained on, "
        "and edited copies (turned, mirrored, in other colours) stand in for held-out ones.",
        len(_pictures(range(len(keys)), keys, families)),
        held,
        MINIMUM_CALIBRATING,
    )
    return True


def with_edited_copies(
    source: SampleSource, trained: Sequence[int], *, families: FamilyIndex | None = None
) -> tuple[PlantedSource, list[int], dict[str, str]]:
    """A source that holds edited copies behind its own samples.

    Args:
        source: of the training images.
        trained: indices of the samples that are trained on; of the files of one picture the first is copied.
        families: what is one picture; by default every sample is.

    Returns:
        The source, the indices of the copies, and the key of the original by the copy's key.
    """
    keys = [sample.key for sample in source.samples]
    pictures = _pictures(trained, keys, families)
    made = []
    for index in pictures:
        sample = source.samples[index]
        for number, edit in enumerate(EDITS[: copies_each(len(pictures))]):
            copy = Sample(f"{sample.key}#edit{number}", sample.caption)
            made.append(MadeSample(copy, HELDOUT, 0, edit.apply, index))
    first = len(source)
    originals = {one.sample.key: keys[one.original] for one in made if one.original is not None}
    return PlantedSource(source, made), list(range(first, first + len(made))), originals


def _pictures(indices: Iterable[int], keys: Sequence[str], families: FamilyIndex | None) -> list[int]:
    """The first sample of each picture."""
    first: dict[str, int] = {}
    for index in indices:
        first.setdefault(keys[index] if families is None else families.picture(keys[index]), index)
    return list(first.values())
