"""The watch without families, said as plainly as possible: visit by visit, over dictionaries of all samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from memtrain.evidence.bulk import EARLY_SHARE, ORDINARY
from memtrain.evidence.standardisation import MOMENTS_WINDOW
from memtrain.evidence.thresholds import BULK_FREEDOM, MINIMUM_BULK, apart_from_themselves
from memtrain.functional.moments import DriftingMoments
from memtrain.functional.statistics import robust_threshold, samples_needed, tail_threshold

WINDOW, MINIMUM = 12, 6


class Known:
    """Evidence of one sample, by column."""

    def __init__(self, columns: int) -> None:
        self.visits, self.mean, self.dilution = [0] * columns, [0.0] * columns, [1.0] * columns

    def add(self, z: Sequence[float]) -> None:
        for column, value in enumerate(z):
            if math.isnan(value):
                continue
            self.visits[column] += 1
            rate = 1 / min(self.visits[column], WINDOW)
            self.mean[column] += rate * (value - self.mean[column])
            self.dilution[column] = (1 - rate) ** 2 * self.dilution[column] + rate**2


class PlainWatch:
    """As :class:`memtrain.evidence.calibration.Calibration`, with one timestep bucket."""

    def __init__(self, columns: int, *, sign: str, rate: float, heldout: bool) -> None:
        self.columns, self.sign, self.rate, self.alone = columns, sign, rate, not heldout
        self.moments = DriftingMoments(1, columns, window=MOMENTS_WINDOW, minimum=MOMENTS_WINDOW // 8)
        self.samples: dict[str, Known] = {}
        self.heldout: dict[str, Known] = {}
        self.highest: dict[str, float] = {}
        self.named: set[str] = set()
        self.peak: dict[str, float] = {}
        self.early: dict[str, float] | None = {} if self.alone else None
        self.frequent: set[str] = set()
        self.threshold, self.first_flagged = math.inf, dict[str, int]()
        self.between = [0.0] * columns

    def follow(self, value: Tensor) -> list[float]:
        z = self.moments.standardise(0, value)
        self.moments.update(0, value)
        return z.tolist()

    def share(self, known: dict[str, Known]) -> list[float]:
        found = []
        for column in range(self.columns):
            seen = [one for one in known.values() if one.visits[column] > 1]
            excess = sum(one.mean[column] ** 2 - one.dilution[column] for one in seen)
            room = sum(1 - one.dilution[column] for one in seen)
            found.append(min(0.95, max(0.0, excess / room)) if len(seen) > 1 else 0.0)
        return found

    def score(self, known: Known) -> float:
        scaled = [
            mean / math.sqrt(share + (1 - share) * dilution)
            for mean, share, dilution in zip(known.mean, self.between, known.dilution, strict=True)
        ]
        if self.sign == "unknown":
            return math.sqrt(sum(value**2 for value in scaled) / self.columns)
        return sum(scaled) / self.columns * (1 if self.sign == "high" else -1)

    def add_heldout(self, keys: Sequence[str], values: Tensor) -> None:
        for key, value in zip(keys, values.double(), strict=True):
            self.heldout.setdefault(key, Known(self.columns)).add(self.follow(value))
        self.between = self.share(self.heldout)
        for key, known in self.heldout.items():
            if min(known.visits) >= MINIMUM:
                self.highest[key] = max(self.score(known), self.highest.get(key, -math.inf))
        self.set_threshold()

    def add(self, keys: Sequence[str], values: Tensor, step: int) -> None:
        touched = []
        # All are compared with the moments before the batch where held-out samples set these.
        compared = values.double()
        z = map(self.follow, compared) if self.alone else self.moments.standardise(0, compared).tolist()
        for key, one in zip(keys, z, strict=True):
            self.samples.setdefault(key, Known(self.columns)).add(one)
            if not all(map(math.isnan, one)) and key not in touched:
                touched.append(key)
        if self.alone:
            self.between = self.share(self.samples)
        for key in touched:
            if min(self.samples[key].visits) >= MINIMUM:
                self.peak[key] = max(self.score(self.samples[key]), self.peak.get(key, -math.inf))
        if self.alone:
            if len(self.bulk(self.peak)) >= MINIMUM_BULK:
                self.early = None
            if self.early is not None:
                self.between = [max(EARLY_SHARE, share) for share in self.between]
                for key in touched:
                    if min(self.samples[key].visits) >= 1:
                        self.early[key] = max(self.score(self.samples[key]), self.early.get(key, -math.inf))
            self.set_threshold()
        for key in touched:
            if min(self.samples[key].visits) >= MINIMUM and self.score(self.samples[key]) > self.threshold:
                self.first_flagged.setdefault(key, step)

    def often(self, keys: Sequence[str]) -> set[str]:
        seen = sorted(count for one in self.samples.values() if (count := min(one.visits)) > 0)
        most = ORDINARY * seen[(len(seen) - 1) // 2] if seen else 0
        return {key for key in keys if min(self.samples[key].visits) > most}

    def bulk(self, peaks: dict[str, float]) -> list[float]:
        self.frequent |= self.often(list(self.peak))
        often = self.frequent if peaks is self.peak else self.frequent | self.often(list(peaks))
        return [score for key, score in peaks.items() if key not in often]

    def set_threshold(self) -> None:
        peaks, rate = self.bulk(self.peak if self.early is None else self.early), self.rate
        if self.early is not None:
            rate /= max(1, 1 + (max((min(one.visits) for one in self.samples.values()), default=0) - MINIMUM) / WINDOW)
        freedom = BULK_FREEDOM if self.alone and self.early is None else math.inf
        bulk = None
        if len(peaks) >= MINIMUM_BULK:
            bulk = robust_threshold(torch.tensor(peaks, dtype=torch.float64), rate, upper=True, freedom=freedom)
        found = bulk if self.alone else self.spent()
        if found is not None:
            self.threshold = found if self.alone or bulk is None else max(found, bulk)

    def spent(self) -> float | None:
        factor = apart_from_themselves(len(self.highest)) if self.sign == "unknown" else 1.0
        scores = {key: factor * score for key, score in self.highest.items()}
        highest = torch.tensor(list(scores.values()), dtype=torch.float64)
        if len(scores) < samples_needed(self.rate):
            return tail_threshold(highest, self.rate) if len(scores) >= 8 else None
        allowed, above = math.floor(self.rate * (len(scores) + 1) + 1e-9), None
        for key in sorted(scores, key=lambda key: -scores[key])[:allowed]:
            if key not in self.named and len(self.named) >= allowed:
                break
            self.named.add(key)
            above = scores[key]
        if above is None:
            return tail_threshold(highest, 1 / (len(scores) + 1))
        return above
