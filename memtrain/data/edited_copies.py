"""Edited copies of the training images as held-out samples, for data with too few images to hold any out.

Copies of each picture are turned, mirrored or have exchanged color channels, under the picture's own caption.
A picture that the model knows by heart helps little with such a copy. Knowledge of the subject, the style and the
captions helps with both. So the copies show the loss of pictures that are not memorized in this run, and every image is
trained on.
Source: ours. The neighborhood attack on language models also compares a sample with neighbors made from itself (Mattern
et al., "Membership Inference Attacks against Language Models via Neighbourhood Comparison", ACL 2023).
Measurements led to this choice (benchmarks/RESULTS.md, "Few images"). In a run on 12 pictures, the log loss after 60
steps was compared with that of the base model. It changed by −0.5 for training pictures, by +0.1 to +0.2 for other real
pictures, and by −0.1 to +0.05 for quarter turns and exchanged colors. For images that the base model makes for the same
captions, it changed by +0.6 to +0.8. So the images that prior preservation makes cannot serve as held-out images. The
model leaves the domain that they come from, and every training picture would be flagged at once. Edited copies err on
the other side: while a picture is memorized, its copies follow it by about a sixth of the way. The false-positive rate
is then a rate among edited copies of the user's own pictures. The copies of a picture count as different samples
although they resemble each other, so with few pictures the rate is rough.
Cost: three copies of each picture are measured, and more if there are fewer than eight pictures.
Cannot: notice a memorized picture if its copies resemble it (a gray disc, a plain pattern); measure how well the
subject generalizes. Real held-out images do that.
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
"""The smallest number of copies of a picture."""
ALTOGETHER = 24
"""The smallest number of copies of all pictures together, as long as there are edits left."""


@dataclass(frozen=True)
class Edit:
    """The change of an image.

    Attributes:
        quarters: the number of counter-clockwise quarter turns.
        mirrored: whether left and right are exchanged before the turn.
        channels: the channels from which red, green and blue are taken.
    """

    quarters: int = 0
    mirrored: bool = False
    channels: str = "RGB"

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the edited copy of an RGB image."""
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
"""The edits in their order of use. The first ones follow a picture least while it is memorized."""


def copies_each(pictures: int) -> int:
    """Return the number of copies of each of `pictures` pictures."""
    return min(len(EDITS), max(EACH, math.ceil(ALTOGETHER / pictures)))


def wants_copies(
    setting: str, keys: Sequence[str], *, families: FamilyIndex | None, fraction: float, held: int
) -> bool:
    """Decide whether edited copies take the place of held-out images. A warning says so for the setting `auto`.

    Args:
        setting: `edited`, `split`, or `auto`, which means `edited` if a split holds out too few for a threshold.
        keys: the keys of the data.
        families: the families, which tell the files of one picture; by default every sample is a picture.
        fraction: the share to hold out; 0 is a decision to hold out nothing.
        held: the number of pictures that a split would hold out.
    """
    if setting != "auto":
        return setting == "edited"
    if fraction == 0 or held >= MINIMUM_CALIBRATING:
        return False
    log.warning(
        "%d picture(s) allow %d held-out ones, but a threshold needs %d. So all of them are trained on. "
        "Edited copies (turned, mirrored, in other colors) are the held-out images.",
        len(_pictures(range(len(keys)), keys, families)),
        held,
        MINIMUM_CALIBRATING,
    )
    return True


def with_edited_copies(
    source: SampleSource, trained: Sequence[int], *, families: FamilyIndex | None = None
) -> tuple[PlantedSource, list[int], dict[str, str]]:
    """Add edited copies behind the samples of a source.

    Args:
        source: the source of the training images.
        trained: the indices of the training samples; of a picture with several files, the first file is copied.
        families: the families, which tell the files of one picture; by default every sample is a picture.

    Returns:
        The new source, the indices of the copies, and the key of the original by the copy's key.
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
    """Return the first sample of each picture."""
    first: dict[str, int] = {}
    for index in indices:
        first.setdefault(keys[index] if families is None else families.picture(keys[index]), index)
    return list(first.values())
