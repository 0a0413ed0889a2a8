"""From which similarity on two images count as one picture, in the data at hand, and whether a copy would be seen.

Threshold: the similarity that generations for held-out prompts, whose pictures the model never saw, stay below at a
stated false-positive rate, on the same maximum over generations that prompts are judged by. With few held-out prompts
the rate is a promise of the order statistic; `rate_bound` is the rate that holds with 95 % confidence over the draw of
the held-out prompts (a tolerance bound).
Power: copies are made of the user's own pictures, as they are and edited (crops, mirrors, shifts, colours, JPEG, ...),
and compared as generations would be. A measure that does not find most of them says so (`sees`), and clears nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CopyCalibration:
    """What a measure's numbers mean in this data.

    Attributes:
        threshold: similarity from which a prompt counts as reproduced (the maximum over its generations).
        false_positive_rate: of a held-out prompt; None where nothing was held out.
        rate_bound: the rate that holds with 95 % confidence.
        heldout: prompts that set the threshold.
        power: by kind of edit (`none` is a plain copy) `n`, `found`, `share`, `interval`.
        train_to_train: similarity of training pictures to the nearest other one: `median`, `percentile_95`,
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
        return self.power["none"]["share"] >= 0.95
