"""The training samples that the monitor finds most suspicious at the moment, ready to be shown.

Canaries are left out, because they are repeated on purpose, and their scores say nothing about the user's own pictures.
If a picture has several files, the file with the highest score is shown. Pictures with enough visits for a flag come
first, because the scores of the others are still noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from memtrain.evidence.calibration import Calibration
from memtrain.functional.pixels import to_uint8
from memtrain.monitoring.data_protocol import by_key
from memtrain.records import REGULARISATION


@dataclass(frozen=True)
class SuspiciousSample:
    """A training sample.

    Attributes:
        key: the key of the sample.
        caption: the training caption of the sample.
        score: the accumulated evidence.
        threshold: score above which a sample is flagged; infinite without a threshold.
        flagged: step of the flag; None without a flag.
        judged: whether the sample has enough visits for a flag.
        image: the training image, `(3, H, W)` uint8.
    """

    key: str
    caption: str
    score: float
    threshold: float
    flagged: int | None
    judged: bool
    image: Tensor

    def lines(self) -> list[str]:
        """Return the lines next to the image: the key, the verdict and the caption."""
        threshold = f"threshold {self.threshold:.2f}" if self.threshold < float("inf") else "no threshold yet"
        verdict = f"flagged at step {self.flagged}" if self.flagged is not None else "not flagged"
        if self.flagged is None and not self.judged:
            verdict = "too few visits to be flagged"
        return [self.key, f"score {self.score:.2f}, {threshold}: {verdict}", self.caption or "(no caption)"]


def can_show(data: Any) -> bool:
    """Whether a data module has training images that can be looked up by key."""
    dataset = getattr(data, "train_dataset", None)
    return hasattr(dataset, "samples") and hasattr(dataset, "pixel_values")


def most_suspicious(calibration: Calibration, data: Any, count: int) -> list[SuspiciousSample]:
    """Find the samples with the highest scores, one for each picture, highest first.

    Args:
        calibration: the calibration of the run.
        data: a data module with `train_dataset.samples` and `train_dataset.pixel_values(row)`.
        count: largest number of samples.
    """
    dataset = data.train_dataset
    groups = by_key(data, "groups")
    rows = {sample.key: row for row, sample in enumerate(dataset.samples) if groups.get(sample.key) != REGULARISATION}
    canaries = {calibration.levels.picture(key) for key in calibration.canaries}
    # More samples are read than needed, because the evidence of files and captions changes the order a little.
    highest = calibration.highest_pictures(4 * count + len(canaries))
    flagged = sorted(name for name in calibration.levels.flagged_pictures if name in calibration.samples.row)
    pictures = [name for name in dict.fromkeys([*highest, *flagged]) if name not in canaries]
    keys = [key for name in pictures for key in calibration.levels.members("picture", name) if key in rows]
    if not keys:
        return []
    scores, judged = calibration.scores(keys).tolist(), calibration.ready(keys).tolist()
    order = sorted(range(len(keys)), key=lambda place: (not judged[place], -scores[place], keys[place]))
    best: dict[str, int] = {}
    for place in order:
        best.setdefault(calibration.levels.picture(keys[place]), place)
    return [
        SuspiciousSample(
            keys[place],
            dataset.samples[rows[keys[place]]].caption,
            scores[place],
            calibration.threshold,
            calibration.first_flagged.get(keys[place]),
            judged[place],
            to_uint8(dataset.pixel_values(rows[keys[place]])),
        )
        for place in list(best.values())[:count]
    ]
