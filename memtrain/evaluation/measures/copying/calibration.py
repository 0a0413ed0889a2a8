"""Calibration of a measure of copying on the data: the threshold of a copy, and the share of copies that it finds.

Threshold: generations for held-out prompts, whose pictures the model never saw, exceed it at a stated false-positive
rate. It is set on the same maximum over generations that prompts are judged by (split-conformal prediction). The rate
holds on average over draws of the held-out prompts. `rate_bound` holds for 95 % of the draws (a tolerance bound: Wilks,
"Determination of Sample Sizes for Setting Tolerance Limits", 1941).
Power: copies are made of the user's own pictures, through the model's autoencoder where there is one, as they are and
edited (crops, mirrors, shifts, colours, JPEG, ...; :mod:`memtrain.evaluation.measures.edits`), and held against the
threshold. A measure that does not find nearly all
plain copies cannot see copies in these data; it says so (`sees`) and clears nothing.
Train to train: how alike each training picture is to the nearest other one. Where that often reaches the threshold, the
data hold look-alikes, or copies that nobody has found.
Cost: fifteen edits of forty pictures, and at most 256 training pictures against all.
Cannot: say how surely a copy is seen that the model has changed in another way than these edits do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from memtrain.evaluation.measures.copying.base import CopyMeasure, TrainingImages, candidates, pictures
from memtrain.evaluation.measures.edits import EDITS, Edit
from memtrain.functional.ranking import proportion_interval
from memtrain.functional.statistics import conformal_threshold, order_rate_bound

PLAIN = "none"
"""Name of the edit that leaves a picture unchanged."""
COPIED, LOOKED_AT = 40, 256
"""Largest numbers of copied pictures, and of training pictures that are compared with the others."""
SEES = 0.95
"""Smallest share of plain copies that a measure has to find."""
CONFIDENCE = 0.95
"""Confidence of `rate_bound`."""


@dataclass(frozen=True)
class CopyCalibration:
    """Threshold and power of a measure in these data.

    Attributes:
        threshold: the similarity at which a prompt counts as reproduced (the maximum over its generations).
        false_positive_rate: the false-positive rate of a held-out prompt; None if no picture was held out.
        rate_bound: the rate that holds with 95 % confidence.
        heldout: the number of prompts that set the threshold.
        power: the figures `n`, `found`, `share`, `interval` by kind of edit (`none` is a plain copy).
        train_to_train: figures of the similarity of training pictures to the nearest other picture: `n`, `median`,
            `percentile_95`, `percentile_99`, `maximum`, and `share_above` (share that counts as a copy of another).
    """

    threshold: float
    false_positive_rate: float | None
    rate_bound: float | None
    heldout: int
    power: dict[str, dict[str, Any]]
    train_to_train: dict[str, float]

    @property
    def sees(self) -> bool:
        """Whether the measure finds nearly all plain copies."""
        return bool(self.power) and self.power[PLAIN]["n"] > 0 and self.power[PLAIN]["share"] >= SEES

    @property
    def edited_share(self) -> float:
        """Mean share of edited copies that the measure finds."""
        shares = [one["share"] for name, one in self.power.items() if name != PLAIN and one["n"]]
        return sum(shares) / len(shares) if shares else 0.0

    def said(self) -> dict[str, Any]:
        """Return the calibration as `results.json` holds it."""
        return {
            "threshold": self.threshold,
            "false_positive_rate": self.false_positive_rate,
            "rate_bound": self.rate_bound,
            "n_heldout": self.heldout,
            "sees": self.sees,
            "power": self.power,
            "train_to_train": self.train_to_train,
        }


def calibrate(
    measure: CopyMeasure,
    null: Tensor,
    *,
    rate: float | None,
    copied: Tensor,
    training: Tensor,
    family: Tensor | None = None,
    features: Tensor | None = None,
    among: Tensor | None = None,
    rendered: Tensor | None = None,
    edits: Mapping[str, Edit] | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> CopyCalibration:
    """Calibrate a measure on these data.

    Args:
        measure: the measure.
        null: the highest similarity over generations of each prompt whose picture the model has not seen, `(n,)`.
        rate: the false-positive rate that n such prompts allow; None if there are none. The threshold is then the value
            that 99 % of the similarities between training pictures do not reach.
        copied: the pictures to copy, `(q, 3, H, W)` uint8; the first forty are taken.
        training: the training images, `(M, 3, H, W)` uint8.
        family: the number of the picture of each training image, `(M,)`. By default, all pictures are different.
        features: the features of the training images, if they are known.
        among: the indices of the training pictures that are compared with the nearest other; by default a random
            choice.
        rendered: the same pictures after the model's autoencoder, `(q, 3, H, W)` uint8. If given, copies are made from
            them, and compared with the pictures.
        edits: the edits by name; by default all of :data:`memtrain.evaluation.measures.edits.EDITS`.
        seed: the seed of the edits, and of the choice of training pictures.
        level: the coverage of the intervals.

    Raises:
        ValueError: if the rate needs more null values than there are.
    """
    alike = nearest_others(measure, training, family=family, features=features, among=among, seed=seed)
    heldout, bound = 0, None
    if rate is None:
        threshold = float(alike.double().quantile(0.99)) if len(alike) else math.inf
    else:
        heldout = len(null)
        threshold = conformal_threshold(null.double(), rate)
        bound = rate_bound(heldout, above=max(1, int(rate * (heldout + 1) + 1e-9)))
    # A held-out prompt at the threshold does not count as a copy.
    threshold = math.nextafter(threshold, math.inf)
    return CopyCalibration(
        threshold=threshold,
        false_positive_rate=rate,
        rate_bound=bound,
        heldout=heldout,
        power=power(
            measure,
            copied[:COPIED],
            threshold=threshold,
            rendered=None if rendered is None else rendered[:COPIED],
            edits=edits,
            seed=seed,
            level=level,
        ),
        train_to_train=_distribution(alike, threshold),
    )


def rate_bound(heldout: int, *, above: int, confidence: float = CONFIDENCE) -> float:
    """Return the false-positive rate that a threshold keeps for a share `confidence` of draws of held-out prompts.

    The rate of the k-th highest of n values is distributed as Beta(k, n - k + 1). The bound is its upper quantile.

    Args:
        heldout: the number n of held-out prompts.
        above: the rank k of the threshold.
        confidence: the confidence of the bound.
    """
    return order_rate_bound(heldout, above=above, confidence=confidence)


def power(
    measure: CopyMeasure,
    images: Tensor,
    *,
    threshold: float,
    rendered: Tensor | None = None,
    edits: Mapping[str, Edit] | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """Measure the share of copies that reach the threshold, by kind of edit.

    Args:
        measure: the measure.
        images: the pictures to copy, `(q, 3, H, W)` uint8.
        threshold: the similarity of a copy.
        rendered: the same pictures after an autoencoder. If given, copies are made from them, and compared with
            `images`.
        edits: the edits by name.
        seed: the seed of random edits.
        level: the coverage of the intervals.
    """
    if not len(images):
        return {}
    own = measure.describe(images)
    sources = pictures(images if rendered is None else rendered)
    found = {}
    for name, edit in {PLAIN: _unchanged, **(EDITS if edits is None else edits)}.items():
        chance = np.random.default_rng(seed)
        copies = torch.stack([_pixels(edit(picture, chance)) for picture in sources])
        described = measure.describe(copies)
        alike = torch.stack([measure.similarity(described[i : i + 1], own[i : i + 1])[0, 0] for i in range(len(own))])
        k, n = int((alike.double() >= threshold).sum()), len(own)
        interval = list(proportion_interval(k, n, level=level))
        found[name] = {"n": n, "found": k, "share": k / n, "interval": interval}
    return found


def nearest_others(
    measure: CopyMeasure,
    training: Tensor,
    *,
    family: Tensor | None = None,
    features: Tensor | None = None,
    among: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Return the similarity `(q,)` of training pictures (`among`, or a random choice) to the nearest other."""
    numbers = torch.arange(len(training)) if family is None else family
    if len(numbers.unique()) < 2:
        return torch.zeros(0)
    first = torch.tensor(sorted({int(number): index for index, number in reversed(list(enumerate(numbers)))}.values()))
    draw = torch.Generator().manual_seed(seed)
    chosen = first[torch.randperm(len(first), generator=draw)[:LOOKED_AT]] if among is None else among
    queries = measure.describe(training[chosen]) if features is None else features[chosen]
    images = TrainingImages(measure, training, features)
    best = torch.full((len(chosen),), -torch.inf)
    if measure.candidates is not None and measure.candidates < len(training):
        same = numbers[chosen][:, None] == numbers
        places = candidates(measure, queries, images, count=measure.candidates, hidden=same)
        for row, columns in enumerate(places):
            alike = measure.similarity(queries[row : row + 1], images[columns])[0]
            best[row] = alike.masked_fill(same[row, columns], -torch.inf).max()
        return best
    for start, block in images.blocks():
        alike = measure.similarity(queries, block)
        alike[numbers[chosen][:, None] == numbers[start : start + len(block)]] = -torch.inf
        best = torch.maximum(best, alike.amax(dim=1))
    return best


def _distribution(alike: Tensor, threshold: float) -> dict[str, float]:
    if not len(alike):
        return {}
    values = alike.double()
    return {
        "n": len(values),
        "median": float(values.quantile(0.5)),
        "percentile_95": float(values.quantile(0.95)),
        "percentile_99": float(values.quantile(0.99)),
        "maximum": float(values.max()),
        "share_above": float((values >= threshold).double().mean()),
    }


def _unchanged(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    return image


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
