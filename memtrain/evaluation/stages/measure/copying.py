"""Measures of copying on the generations of a run or folder: comparison, calibration and controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.base import CopyMeasure, compare
from memtrain.evaluation.measures.copying.calibration import COPIED, calibrate
from memtrain.evaluation.measures.copying.find import recommended
from memtrain.evaluation.stages.kept_features import features_of
from memtrain.evaluation.stages.measure.controls import chosen_rows, planted_copies
from memtrain.evaluation.stages.measure.copied import Copied, null_values, said_of_measure, thresholds_of_prompts
from memtrain.evaluation.stages.measure.decision import RATIO
from memtrain.evaluation.stages.measure.null import by_made_captions
from memtrain.evaluation.stages.measure.samples import counted_as
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.files.progress import SOON, progress_bar
from memtrain.records import HELDOUT, MADE_CAPTION, NEVER_TRAINED


class Compare(NamedTuple):
    """Generations, and the images that they are compared with.

    Attributes:
        samples: the samples of P prompts, and the M training images.
        generated: the generations, `(P, K, 3, H, W)` uint8.
        perfect: the own images after the model's autoencoder, `(P, 3, H, W)` uint8.
        family: the number of the picture of each training image, `(M,)`; files of one picture have the same number.
        mine: the indices of the own training images of each prompt, by prompt.
        calibrating: the prompts that set thresholds, `(P,)` bool.
        rate: the false-positive rate that these prompts allow; None if there are none.
        level: the coverage of the intervals.
    """

    samples: RunSamples
    generated: Tensor
    perfect: Tensor
    family: Tensor
    mine: list[list[int]]
    calibrating: Tensor
    rate: float | None
    level: float = 0.95

    @property
    def trained(self) -> Tensor:
        """Prompts whose picture was trained on, `(P,)` bool."""
        return torch.tensor([prompt.group not in NEVER_TRAINED for prompt in self.samples.prompts], dtype=torch.bool)

    @property
    def unseen(self) -> Tensor:
        """Held-out prompts whose picture the model has not seen, `(P,)` bool."""
        held = torch.tensor([prompt.group == HELDOUT for prompt in self.samples.prompts], dtype=torch.bool)
        return held & self.calibrating


class Chosen(NamedTuple):
    """Chosen measures of copying.

    Attributes:
        measures: the measures beside the ratio.
        left_out: the reasons against other measures, by name.
    """

    measures: Sequence[CopyMeasure] = ()
    left_out: Mapping[str, str] = {}


class Found(NamedTuple):
    """Findings of a measure.

    Attributes:
        copied: the similarities of the generations, with their calibration.
        planted: whether each planted copy of a training picture counts as a copy, `(n,)` bool.
        unplanted: whether each picture that the model has not seen counts as a copy, `(m,)` bool.
        heldout_nearest: the similarity of each unseen picture to its nearest training picture, `(h,)`.
    """

    copied: Copied
    planted: Tensor
    unplanted: Tensor
    heldout_nearest: Tensor


def all_measured(chosen: Chosen, given: Compare) -> tuple[list[Found], dict[str, str]]:
    """Apply every measure that can measure these images; also return the reasons against the others, by name."""
    height, width = given.samples.own_images.shape[-2:]
    found, left_out = [], dict(chosen.left_out)
    named = "comparing with training pictures"
    for measure in progress_bar(chosen.measures, named, unit="measure", disable=not chosen.measures, delay=SOON):
        reason = measure.reason_against((int(height), int(width)))
        if reason is None:
            found.append(measured(measure, given))
        else:
            left_out[measure.name] = reason
    return found, left_out


def said_of_copying(
    found: Sequence[Found],
    left_out: Mapping[str, str],
    given: Compare,
    *,
    ratio: Mapping[str, Any] | None,
    controls: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Make the part `copying` of `results.json`.

    A measure whose controls fail is recommended only if the controls of all measures fail.

    Args:
        found: the findings of each measure.
        left_out: the reasons against other measures, by name.
        given: the generations, and the images that they were compared with.
        ratio: the figures of the ratio (:func:`memtrain.evaluation.stages.measure.ratio_measure.ratio_measure`).
        controls: the controls of all measures.
    """
    groups = [prompt.group for prompt in given.samples.prompts]
    names = counted_as(given.samples)
    measures: dict[str, Any] = {} if ratio is None else {RATIO: ratio}
    for one in found:
        said = said_of_measure(one.copied, groups, names, asked=given.trained, level=given.level)
        said["groups"].pop(MADE_CAPTION, None)  # these prompts have no picture that could come back
        measures[one.copied.name] = said
    calibrations = {one.copied.name: one.copied.calibration for one in found}
    good = {name: one for name, one in calibrations.items() if controls[name]["hold"] is not False}
    sees = ratio is not None and ratio["sees"]
    best = recommended(good)
    if best is None and sees and controls[RATIO]["hold"] is not False:
        best = RATIO
    best = best or recommended(calibrations) or (RATIO if sees else None)
    return {"recommended": best, "measures": measures, "left_out": dict(left_out)}


def measured(measure: CopyMeasure, given: Compare) -> Found:
    """Compare the generations by one measure, calibrate it, and try it on the controls."""
    samples, calibrating = given.samples, given.calibrating
    measure.learn(samples.usual_images)
    features = features_of(measure, samples.training_images, samples.features)
    compared = compare(
        measure,
        given.generated,
        samples.own_images,
        training=samples.training_images,
        mine=given.mine,
        features=features,
    )
    made = by_made_captions(samples, calibrating)
    copied_rows = chosen_rows(given.trained, most=COPIED)
    calibration = calibrate(
        measure,
        null_values(compared, calibrating, made=made),
        rate=given.rate,
        copied=samples.own_images[copied_rows],
        rendered=given.perfect[copied_rows],
        training=samples.training_images,
        family=given.family,
        features=features,
        among=None if samples.part is None else samples.part.looked_at_places,
        level=given.level,
    )
    thresholds, factors = thresholds_of_prompts(
        measure,
        given.generated[calibrating],
        features,
        mine=given.mine,
        threshold=calibration.threshold,
        rate=None if made else calibration.false_positive_rate,
    )
    copied = Copied(measure.name, compared, calibration, thresholds, factors)
    heldout_nearest = torch.zeros(0)
    if given.unseen.any():
        heldout = measure.describe(samples.own_images[given.unseen])
        heldout_nearest = measure.similarity(heldout, features).amax(dim=1)
    return Found(copied, *_controls(measure, given, features, copied), heldout_nearest)


def _controls(measure: CopyMeasure, given: Compare, features: Tensor, copied: Copied) -> tuple[Tensor, Tensor]:
    """Compare planted copies with their pictures, and unseen pictures with all; return which count as copies."""
    planted = torch.zeros(0, dtype=torch.bool)
    rows = chosen_rows(given.trained)
    if rows:
        copies = measure.describe(planted_copies(given.perfect[rows]))
        own = [measure.similarity(copies[at : at + 1], features[given.mine[row]]).amax() for at, row in enumerate(rows)]
        planted = torch.stack(own).double() >= copied.thresholds[rows]
    unplanted = torch.zeros(0, dtype=torch.bool)
    rows = chosen_rows(given.unseen)
    if rows:
        alike = measure.similarity(measure.describe(given.perfect[rows]), features).amax(dim=1)
        unplanted = alike.double() >= copied.copy_of_any
    return planted, unplanted
