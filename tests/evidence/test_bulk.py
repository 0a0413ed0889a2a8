"""The bulk of the training samples: a rate over all looks of a run, and who is none of it."""

import math

import pytest
import torch

from memtrain.evidence.calibration import Calibration


def ordinary_ever_flagged(*, between: float, visits: int, seed: int, rate: float = 0.02, samples: int = 200) -> float:
    """Share of ordinary samples ever flagged, without held-out samples and with a few shifted ones among them."""
    generator = torch.Generator().manual_seed(seed)
    calibration = Calibration(
        1, scored=slice(0, 1), memorized_when="high", buckets=1, false_positive_rate=rate, heldout=False
    )
    keys = [f"{index}" for index in range(samples + 8)]
    own = between * torch.randn(len(keys), 1, generator=generator)
    own[samples:] += 4
    for step in range(visits):
        order = torch.randperm(len(keys), generator=generator).tolist()
        for batch in (order[start : start + 26] for start in range(0, len(order), 26)):
            values = own[batch] + torch.randn(len(batch), 1, generator=generator)
            calibration.add([keys[index] for index in batch], [0] * len(batch), values, step=step)
    assert calibration.ever_flagged(keys[samples:]).all()
    return float(calibration.ever_flagged(keys[:samples]).float().mean())


@pytest.mark.parametrize("between", [0.0, 0.5])
def test_without_heldout_the_rate_holds_over_all_looks_of_a_run(between: float) -> None:
    shares = [ordinary_ever_flagged(between=between, visits=40, seed=seed) for seed in range(3)]
    assert sum(shares) / 3 < 0.04, "0.08 to 0.16 by the bulk of the scores as of now"


def test_without_heldout_duplicates_that_are_ready_first_do_not_set_the_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    calibration = Calibration(1, scored=slice(0, 1), memorized_when="high", buckets=1, heldout=False)
    often, once = [f"often {index}" for index in range(20)], [f"once {index}" for index in range(160)]
    shift = torch.tensor([4.0] * 20 + [0.0] * 20)[:, None]
    for step in range(64):
        keys = often + once[20 * (step % 8) : 20 * (step % 8) + 20]
        if step == 40:
            assert calibration.threshold == math.inf, "only duplicates have visits enough"
        calibration.add(keys, [0] * 40, shift + torch.randn(40, 1, generator=generator), step=step)
    assert calibration.ever_flagged(often).all()
    assert calibration.ever_flagged(once).float().mean() < 0.05


def test_what_training_does_to_all_training_samples_flags_none_of_them() -> None:
    """Training samples drift away from held-out ones together; a few go much further."""
    generator = torch.Generator().manual_seed(0)
    calibration = Calibration(1, scored=slice(0, 1), memorized_when="high", buckets=1, false_positive_rate=0.02)
    held, plain, bad = ([f"{kind} {i}" for i in range(n)] for kind, n in (("h", 60), ("p", 200), ("b", 10)))
    for step in range(40):
        calibration.add_heldout(held, [0] * 60, torch.randn(60, 1, generator=generator))
        values = torch.randn(210, 1, generator=generator) + 0.03 * step
        values[200:] += 3
        calibration.add(plain + bad, [0] * 210, values, step=step)
    alone = max(calibration.highest.values())
    assert float((calibration.scores(plain) > alone).float().mean()) > 0.5, "held-out samples alone would flag most"
    assert float(calibration.ever_flagged(plain).float().mean()) < 0.2
    assert calibration.ever_flagged(bad).all()
