"""From which similarity on two images count as one picture, in the data at hand, and whether a copy would be seen.

Threshold: what generations for held-out prompts, whose pictures the model never saw, exceed at a stated false-positive
rate, taken on the same maximum over generations that prompts are judged by (split-conformal prediction). That rate
holds on average over draws of the held-out prompts; `rate_bound` holds for 95 % of the draws (a tolerance bound: Wilks,
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
"""Name of the edit that changes nothing."""
COPIED, LOOKED_AT = 40, 256
"""Pictures of which copies are made, and training pictures that are compared with the others, at most."""
SEES = 0.95
"""Share of plain copies that a measure has to find."""
CONFIDENCE = 0.95
"""Of `rate_bound`."""


@dataclass(frozen=True)
class CopyCalibration:
    """What a measure's numbers mean in these data.

    Attributes:
        threshold: similarity from which a prompt counts as reproduced (the maximum over its generations).
        false_positive_rate: of a held-out prompt; None where nothing was held out.
        rate_bound: the rate that holds with 95 % confidence.
        heldout: prompts that set the threshold.
        power: by kind of edit (`none` is a plain copy) `n`, `found`, `share`, `interval`.
        train_to_train: similarity of training pictures to the nearest other one: `n`, `median`, `percentile_95`,
            `percentile_99`, `maximum`, and `share_above`, of pictures that would count as copies of another.
    """

    threshold: float
    false_positive_rate: float | None
    rate_bound: float | None
    heldout: int
    power: dict[str, dict[str, Any]]
    train_to_train: dict[str, float]

    @property
    def sees(self) -> bool:
        """Whether plain copies are found, nearly all of them."""
        return bool(self.power) and self.power[PLAIN]["n"] > 0 and self.power[PLAIN]["share"] >= SEES

    @property
    def edited_share(self) -> float:
        """Mean share of edited copies that are found."""
        shares = [one["share"] for name, one in self.power.items() if name != PLAIN and one["n"]]
        return sum(shares) / len(shares) if shares else 0.0

    def said(self) -> dict[str, Any]:
        """As `results.json` holds it."""
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
    """What a measure's numbers mean in these data.

    Args:
        measure: the measure.
        null: `(n,)` highest similarity over generations of each prompt whose picture the model has not seen.
        rate: false-positive rate that n such prompts can promise; None where there are none. Then the threshold is what
            99 % of the training pictures stay below among each other.
        copied: `(q, 3, H, W)` uint8, pictures of which copies are made; the first forty are taken.
        training: `(M, 3, H, W)` uint8.
        family: `(M,)`, the same number for training images that are one picture. Default: all are different.
        features: of the training images, where they are at hand.
        among: indices of the training pictures that are compared with the nearest other one; default a random choice.
        rendered: `(q, 3, H, W)` uint8, the same pictures as the model can make them at best, through its autoencoder;
            copies are made of these where they are given, and held against the pictures.
        edits: by name; default all of :data:`memtrain.evaluation.measures.edits.EDITS`.
        seed: of the edits, and of the choice of training pictures.
        level: coverage of the intervals.

    Raises:
        ValueError: if the rate asks for more null values than there are.
    """
    alike = nearest_others(measure, training, family=family, features=features, among=among, seed=seed)
    heldout, bound = 0, None
    if rate is None:
        threshold = float(alike.double().quantile(0.99)) if len(alike) else math.inf
    else:
        heldout = len(null)
        threshold = conformal_threshold(null.double(), rate)
        bound = rate_bound(heldout, above=max(1, int(rate * (heldout + 1) + 1e-9)))
    # A held-out prompt at the threshold is no copy.
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
    """The false-positive rate that a threshold keeps for a share `confidence` of the draws of held-out prompts.

    The rate of the k-th highest of n values is distributed as Beta(k, n - k + 1); this is its upper quantile.

    Args:
        heldout: n.
        above: k.
        confidence: of the bound.
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
    """Share of copies that reach the threshold, by kind of edit.

    Args:
        measure: the measure.
        images: `(q, 3, H, W)` uint8, of which copies are made.
        threshold: similarity of a copy.
        rendered: the same, of which copies are made instead; they are held against `images`.
        edits: by name.
        seed: of what chance decides in an edit.
        level: coverage of the intervals.
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
    """`(q,)` similarity of training pictures, those `among` or a random choice, to the nearest other picture."""
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
