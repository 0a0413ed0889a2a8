"""Simulated data without any memorization, for :mod:`rates`: each function is one run, and returns rates by name.

- *monitor*: ordinary samples, of which n are held out, pass :class:`memtrain.evidence.calibration.Calibration` as in a
  training. The figure is the share of the others that is flagged at any time, by requested rate.
- *bulk*: the same without held-out samples.
- *levels*: files of one picture, or pictures of one caption, all alike, which is the worst case (`flag_rates.py`).
- *prompts*: p-values of `memtrain detect` against null prompts of other lengths. The figures are the share of prompts
  at most at the level, and whether any is named by Holm's method. If a quarter is memorized, the share of false prompts
  among the ones named by Benjamini and Hochberg follows.
- *copies*: the threshold of a copy measure on maxima over generations of n held-out prompts. The figures are the rate
  of a further prompt, and how often it is above the bound that is stated for 95 % of the draws.
- *exposure*: how often a secret that nobody saw is among the first hundredth of its candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flag_rates
import torch
from torch import Tensor

from memtrain.evaluation.stages.detect.p_values import benjamini_hochberg, combined_p_values, holm, p_values
from memtrain.evaluation.stages.measure.counting.exposure import ranks
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.thresholds import Spending
from memtrain.functional.statistics import conformal_threshold, order_rate_bound

RATES = (0.001, 0.01, 0.05)
"""Asked false-positive rates."""
TRAINED, EPOCHS, BATCH = 150, 25, 50
"""Samples that are trained on in a simulated run, visits to each, and visits in a batch."""


@dataclass(frozen=True)
class Kind:
    """The properties of ordinary samples and their visits.

    Attributes:
        between: standard deviation between samples; that of a visit is 1.
        drift: the drift of all values, per epoch.
        heavy: visits follow Student's distribution with 3 degrees of freedom.
        pairs: every two samples share what they are like.
        columns: number of values; of more than one the sign is unknown, and scores are root mean squares.
    """

    between: float = 0.5
    drift: float = 0.0
    heavy: bool = False
    pairs: bool = False
    columns: int = 1


KINDS = {
    "independent, normal": Kind(),
    "samples hardly differ": Kind(between=0.0),
    "drift of the model": Kind(drift=-0.05),
    "heavy tails (t, 3 degrees)": Kind(heavy=True),
    "correlated in pairs": Kind(pairs=True, between=0.7),
    "seven unsigned columns": Kind(columns=7),
}
"""By name."""


class ManyRates(Calibration):
    """A calibration that flags at several rates at once, of samples that stand alone: evidence is the same at all.

    Attributes:
        ever: keys of the samples that were flagged at some time, by rate.
    """

    def __init__(self, columns: int, *, rates: Sequence[float] = RATES, **options: Any) -> None:
        super().__init__(columns, false_positive_rate=rates[0], **options)
        self.rates, self.spent = rates, {rate: Spending() for rate in rates}
        self.ever: dict[float, set[str]] = {rate: set() for rate in rates}
        self.thresholds = dict.fromkeys(rates, self.threshold)

    def _set_threshold(self, peaks: Tensor) -> None:
        for rate in self.rates:
            self.false_positive_rate, self.threshold = rate, self.thresholds[rate]
            self.spending = self.spent[rate]
            super()._set_threshold(peaks)
            self.thresholds[rate] = self.threshold

    def _judge(self, level: str, names: Sequence[str], scores: Tensor, step: int) -> None:
        enough = self._visits_of(level, names) >= self.minimum_visits
        for rate, threshold in self.thresholds.items():
            above = (enough & (scores > threshold)).tolist()
            self.ever[rate].update(name for name, is_above in zip(names, above, strict=True) if is_above)


def monitor(kind: Kind, heldout: int, seed: int, *, rates: Sequence[float] = RATES) -> dict[str, float]:
    """Share of ordinary samples flagged at some time in a run, by asked rate; of no held-out ones, by the bulk."""
    generator = torch.Generator().manual_seed(seed)
    calibration = ManyRates(
        kind.columns,
        rates=rates,
        scored=slice(0, kind.columns),
        memorized_when="high" if kind.columns == 1 else "unknown",
        buckets=1,
        heldout=heldout > 0,
    )
    own = kind.between * torch.randn(heldout + TRAINED, kind.columns, generator=generator)
    if kind.pairs:
        own[1::2] = own[::2][: len(own) // 2]
    keys = [str(row) for row in range(len(own))]

    def visit(rows: Tensor, epoch: int) -> Tensor:
        noise = torch.randn(len(rows), kind.columns, generator=generator)
        if kind.heavy:
            noise = noise / torch.randn(3, len(rows), 1, generator=generator).square().mean(dim=0).sqrt()
        return own[rows] + noise + kind.drift * epoch

    def calibrate(epoch: int) -> None:
        rows = torch.randperm(heldout, generator=generator)
        calibration.add_heldout([keys[row] for row in rows], [0] * heldout, visit(rows, epoch))

    # As before a training: until there is a threshold.
    while heldout and calibration.heldout_ready() < heldout:
        calibrate(0)
    for epoch in range(EPOCHS):
        if heldout:
            calibrate(epoch)
        order = heldout + torch.randperm(TRAINED, generator=generator)
        for rows in order.split(BATCH):
            calibration.add([keys[row] for row in rows], [0] * len(rows), visit(rows, epoch), step=epoch)
    return {f"{rate:g}": len(calibration.ever[rate]) / TRAINED for rate in rates}


def levels(files: int, span: int, seed: int) -> dict[str, float]:
    """The same at 1 %, of pictures of several files, or captions of several pictures, with 100 held out."""
    scenario = flag_rates.Scenario(
        "", samples=400, files=files, span=span, between=0.2, heldout=100, epochs=10, batch=100
    )
    return {"0.01": flag_rates.simulate(scenario, seed, calibrating=None, rates=(0.01,)).ordinary[0.01]}


def prompts(noise: str, seed: int, *, count: int = 20, null: int = 499, level: float = 0.05) -> dict[str, float]:
    """Prompts against null prompts; three detectors that have much in common."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 30, (count + null,), generator=generator)
    common = torch.randn(count + null, generator=generator)
    scores = []
    for _ in range(3):
        own = common + torch.randn(count + null, generator=generator)
        if noise == "heavy tails (t, 3 degrees)":
            own = own / torch.randn(3, count + null, generator=generator).square().mean(dim=0).sqrt()
        scores.append(own.exp() if noise == "log-normal" else own + 0.1 * lengths)
    about = {"lengths": lengths[:count], "null_lengths": lengths[count:]}
    single = p_values(scores[0][:count], scores[0][count:], **about)
    parts = {str(number): (one[:count], one[count:]) for number, one in enumerate(scores)}
    together = combined_p_values(
        {name: own for name, (own, _) in parts.items()}, {name: made for name, (_, made) in parts.items()}, **about
    )
    memorized = torch.arange(count) < count // 4
    raised = scores[0][:count] + 40 * memorized
    named = benjamini_hochberg(p_values(raised, scores[0][count:], **about)) < level
    return {
        "one detector": float((single <= level).double().mean()),
        "three detectors": float((together <= level).double().mean()),
        "any named (Holm)": float((holm(single) < level).any()),
        "false share (BH)": float((named & ~memorized).sum() / named.sum().clamp(min=1)),
    }


def copies(spread: float, heldout: int, seed: int, *, generations: int = 4) -> dict[str, float]:
    """A copy measure: the chance that a further held-out prompt counts as reproduced, and whether its bound fails."""
    generator = torch.Generator().manual_seed(seed)
    # Generations of one prompt have its own ease in common.
    ease = torch.randn(heldout + 40_000, 1, generator=generator)
    highest = (ease + spread * torch.randn(heldout + 40_000, generations, generator=generator)).sigmoid().amax(dim=1)
    rate = max(0.01, 1 / (heldout + 1))
    threshold = conformal_threshold(highest[:heldout].double(), rate)
    found = float((highest[heldout:].double() > threshold).double().mean())
    above = max(1, int(rate * (heldout + 1) + 1e-9))
    return {f"{rate:.2g}": found, "bound fails": float(found > order_rate_bound(heldout, above=above))}


def exposure(candidates: int, seed: int) -> dict[str, float]:
    """Secrets that nobody saw, with heavy tails: how many are among the first hundredth of their candidates."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(200, candidates, generator=generator)
    values = values / torch.randn(3, 200, candidates, generator=generator).square().mean(dim=0).sqrt()
    return {"0.01": float((ranks(values, lower_is_known=True) <= candidates // 100).double().mean())}
