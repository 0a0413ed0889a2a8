"""Evidence by picture, sample and caption: the rate that holds for the three together, and who is flagged by what."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.levels import CAPTION, COMMON, PICTURE, SAMPLE
from memtrain.evidence.thresholds import SharedRate
from memtrain.families.table import Families


def families(
    *groups: tuple[str, int, int, int],
) -> tuple[Families, dict[str, list[str]]]:
    """Captions of `span` pictures of `members` files each, `count` of them, by the name of the group."""
    pictures, captions, keys = {}, {}, {}
    for name, members, span, count in groups:
        keys[name] = [f"{name} {c} {p} {m}" for c in range(count) for p in range(span) for m in range(members)]
        for key in keys[name]:
            _, caption, picture, _ = key.split()
            if members > 1:
                pictures[key] = f"{name} {caption} {picture} 0"
            if span > 1:
                captions[key] = f"{name} {caption} 0 0"
    return Families(pictures, captions), keys


def made(index: Families | None, *, pictures: int | None = None, rate: float = 0.05, **options: Any) -> Calibration:
    """A calibration of one value that is high when memorized."""
    calibration = Calibration(
        1, scored=slice(0, 1), memorized_when="high", buckets=1, false_positive_rate=rate, **options
    )
    return calibration.group_by(index, pictures=pictures)


def held_out(calibration: Calibration, generator: torch.Generator, *, count: int = 60, rounds: int = 10) -> None:
    """Visits of held-out samples that do not differ."""
    names = [f"held {index}" for index in range(count)]
    for _ in range(rounds):
        calibration.add_heldout(names, [0] * count, torch.randn(count, 1, generator=generator))


def visit(calibration: Calibration, keys: list[str], value: float, *, step: int = 0) -> None:
    """One visit of each."""
    calibration.add(keys, [0] * len(keys), torch.full((len(keys), 1), value), step=step)


def shares_flagged(*, within: float, between: float, seed: int, rate: float, heldout: bool = True) -> dict[str, float]:
    """Shares of ordinary samples that are flagged in a run of eight epochs; families are alike by `within`."""
    generator = torch.Generator().manual_seed(seed)
    index, groups = families(("lone", 1, 1, 200), ("five", 5, 1, 60), ("many", 200, 1, 8), ("few", 1, 5, 40), ("wide", 1, 50, 12))
    keys = [key for group in groups.values() for key in group]
    calibration = made(index, pictures=len({index.picture(key) for key in keys}), rate=rate, heldout=heldout)

    def drawn(names: list[str]) -> torch.Tensor:
        rows = {name: row for row, name in enumerate(dict.fromkeys(names))}
        return torch.randn(len(rows), generator=generator)[[rows[name] for name in names]]

    caption, picture = drawn([index.caption(key) for key in keys]), drawn([index.picture(key) for key in keys])
    shared = math.sqrt(within) * caption + math.sqrt(1 - within) * picture
    own = between * (math.sqrt(within) * shared + math.sqrt(1 - within) * torch.randn(len(keys), generator=generator))
    held, theirs = [f"held {row}" for row in range(100)], between * torch.randn(100, generator=generator)
    for step in range(8 * (len(keys) // 512 + 1)):
        epoch, part = divmod(step, len(keys) // 512 + 1)
        if heldout and part == 0:
            for _ in range(8 if epoch == 0 else 1):
                calibration.add_heldout(held, [0] * 100, (theirs + torch.randn(100, generator=generator))[:, None])
        order = torch.randperm(len(keys), generator=generator) if part == 0 else order
        batch = order[512 * part : 512 * (part + 1)]
        values = own[batch] + torch.randn(len(batch), generator=generator)
        calibration.add([keys[row] for row in batch], [0] * len(batch), values[:, None], step=step)
    return {name: float(calibration.ever_flagged(group).float().mean()) for name, group in groups.items()}


@pytest.mark.parametrize(("within", "between"), [(0.0, 0.2), (0.5, 0.2), (1.0, 0.2), (1.0, 0.0)])
def test_the_stated_rate_holds_for_sample_picture_and_caption_together(within: float, between: float) -> None:
    runs = [shares_flagged(within=within, between=between, seed=seed, rate=0.05) for seed in range(2)]
    for name in runs[0]:
        assert sum(run[name] for run in runs) / len(runs) <= (0.05 if name == "lone" else 0.1), name
    everyone = {"lone": 200, "five": 300, "many": 1600, "few": 200, "wide": 600}
    flagged = sum(run[name] * count for run in runs for name, count in everyone.items())
    assert flagged / (len(runs) * sum(everyone.values())) <= 0.05
