"""The bulk of the training samples: a rate over all looks of a run, and who is none of it."""

import copy
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
            assert not calibration.bulk.peaks().numel(), "only duplicates have visits enough to be flagged"
            assert calibration.ever_flagged(often).all(), "samples with fewer visits say what is usual"
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


def few_often(
    *, effect: float, seed: int, epochs: int, calibrating: int | None = None
) -> tuple[Calibration, list[str]]:
    """200 samples, of which five are visited 50 times an epoch; batches of 16, of which every fourth counts."""
    generator = torch.Generator().manual_seed(seed)
    calibration = made(calibrating)
    keys = [f"{index}" for index in range(200)]
    own = 0.5 * torch.randn(200, 1, generator=generator)
    own[195:] += effect
    rows = torch.cat([torch.arange(195), torch.arange(195, 200).repeat(50)])
    step = 0
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(16):
            if step % 4 == 0:
                values = own[batch] + torch.randn(len(batch), 1, generator=generator)
                calibration.add([keys[row] for row in batch], [0] * len(batch), values, step=step)
            step += 1
    return calibration, keys[195:]


def made(calibrating: int | None = None) -> Calibration:
    return Calibration(
        1, scored=slice(0, 1), memorized_when="high", buckets=1, heldout=False, calibrating_visits=calibrating
    )


def test_without_heldout_duplicates_are_flagged_within_two_epochs() -> None:
    for seed in range(3):
        calibration, duplicates = few_often(effect=4, seed=seed, epochs=2)
        assert calibration.ever_flagged(duplicates).all()
        assert max(calibration.first_flagged[key] for key in duplicates) < 56
        assert set(calibration.first_flagged) == set(duplicates)
        assert few_often(effect=4, seed=seed, epochs=2, calibrating=6)[0].threshold == math.inf


def test_samples_that_are_repeated_and_ordinary_otherwise_are_not_flagged_by_the_early_bulk() -> None:
    found = [few_often(effect=0, seed=seed, epochs=10) for seed in range(8)]
    assert all(calibration.bulk.early for calibration, _ in found)
    assert sum(int(calibration.ever_flagged(often).sum()) for calibration, often in found) <= 1, "of 40, each 120 times"


def test_the_early_bulk_leaves_nothing_behind() -> None:
    early, duplicates = few_often(effect=1.5, seed=1, epochs=20)
    late, _ = few_often(effect=1.5, seed=1, epochs=20, calibrating=6)
    assert not early.bulk.early
    assert early.threshold == late.threshold < math.inf
    assert torch.equal(early.scores(duplicates), late.scores(duplicates))
    assert torch.equal(early.p_values(duplicates), late.p_values(duplicates))
    assert torch.equal(early.bulk.peak, late.bulk.peak)
    assert min(early.first_flagged.values()) < 100 < min(late.first_flagged.values())


def test_a_run_is_taken_up_with_its_early_bulk() -> None:
    whole, duplicates = few_often(effect=2, seed=0, epochs=2)
    again = made()
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert whole.bulk.early and len(whole.bulk.early_peaks()) > 32
    assert torch.equal(again.scores(duplicates), whole.scores(duplicates))
    assert torch.equal(again.p_values(duplicates), whole.p_values(duplicates))
    assert whole.p_values(duplicates).isfinite().all()
    for calibration in (whole, again):
        calibration.add(duplicates, [0] * 5, torch.full((5, 1), 3.0), step=999)
    assert again.threshold == whole.threshold < math.inf
    assert torch.equal(again.bulk.early_peaks(), whole.bulk.early_peaks())


def by_weight(calibrating: int | None, *, effect: float, seed: int) -> tuple[Calibration, list[str]]:
    """As :func:`few_often`, with 20 held-out samples that are visited as the others are."""
    generator = torch.Generator().manual_seed(seed)
    calibration = Calibration(1, scored=slice(0, 1), memorized_when="high", buckets=1, calibrating_visits=calibrating)
    keys = [f"{index}" for index in range(200)]
    rows = torch.cat([torch.arange(195), torch.arange(195, 200).repeat(50)])
    own = 0.5 * torch.randn(200, 1, generator=generator)
    own[195:] += effect
    for step, batch in enumerate(rows[torch.randint(len(rows), (10 * 28 // 4, 16), generator=generator)]):
        values, held = own[batch] + torch.randn(16, 1, generator=generator), batch < 20
        names, others = [keys[row] for row in batch[held]], [keys[row] for row in batch[~held]]
        calibration.add_heldout(names, [0] * len(names), values[held])
        calibration.add(others, [0] * len(others), values[~held], step=step)
    return calibration, keys[195:]


def test_held_out_samples_calibrate_from_fewer_visits_where_that_is_asked_for() -> None:
    assert by_weight(None, effect=4, seed=0)[0].threshold == math.inf
    calibration, duplicates = by_weight(1, effect=4, seed=0)
    assert set(calibration.first_flagged) == set(duplicates)
    ordinary = [by_weight(1, effect=0, seed=seed)[0] for seed in range(8)]
    assert all(calibration.threshold < math.inf for calibration in ordinary)
    assert sum(len(calibration.first_flagged) for calibration in ordinary) <= 1, "of 1,440, five of 180 often visited"
