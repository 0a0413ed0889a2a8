"""Evidence and flags on simulated signals: the stated false-positive rate, power, and resuming."""

import math

import pytest
import torch

from memtrain.calibration import Calibration, signed_score
from memtrain.errors import CalibrationError
from memtrain.evidence import Evidence


def simulate(
    *,
    heldout: int,
    training: int,
    effect: float,
    memorized: int = 10,
    rate: float = 0.05,
    seed: int = 0,
    unsigned: bool = False,
    between: float = 0.5,
    use_heldout: bool = True,
) -> tuple[Calibration, list[str], list[str]]:
    """Samples differ for good (`between`) and from visit to visit; everything drifts; some are shifted by `effect`."""
    generator = torch.Generator().manual_seed(seed)
    columns = 3 if unsigned else 1
    calibration = Calibration(
        columns,
        scored=slice(0, columns),
        memorized_when="unknown" if unsigned else "low",
        buckets=2,
        false_positive_rate=rate,
        heldout=use_heldout,
    )

    def names(kind: str, count: int) -> list[str]:
        return [f"{kind} {index}" for index in range(count)]

    held, plain, bad = names("held", heldout), names("plain", training), names("bad", memorized)
    own = {key: between * torch.randn(columns, generator=generator) for key in held + plain + bad}
    shift = effect * torch.tensor([-1.0, 1.0, -1.0][:columns])

    def visit(keys: list[str], round_number: int) -> tuple[list[int], torch.Tensor]:
        buckets = torch.randint(2, (len(keys),), generator=generator)
        noise = torch.randn(len(keys), columns, generator=generator)
        base = torch.stack([own[key] + (shift if key in bad else 0) for key in keys])
        return buckets.tolist(), base + noise - 0.05 * round_number + buckets[:, None]

    for round_number in range(30):
        if use_heldout:
            buckets, values = visit(held, round_number)
            calibration.add_heldout(held, buckets, values)
        buckets, values = visit(plain + bad, round_number)
        calibration.add(plain + bad, buckets, values, step=round_number)
    return calibration, plain, bad


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("heldout", [60, 15])
def test_the_false_positive_rate_holds_over_a_whole_run_and_memorized_samples_are_found(
    heldout: int, unsigned: bool
) -> None:
    flagged, found, count = 0, 0, 0
    for seed in range(6):
        calibration, plain, bad = simulate(heldout=heldout, training=150, effect=4.0, seed=seed, unsigned=unsigned)
        flagged += int(calibration.ever_flagged(plain).sum())
        found += int(calibration.ever_flagged(bad).sum())
        count += len(plain)
    assert flagged / count < (0.1 if heldout == 60 else 0.15)
    assert found / 60 > 0.95


def test_no_effect_no_power() -> None:
    calibration, _, bad = simulate(heldout=60, training=50, effect=0.0)
    assert int(calibration.ever_flagged(bad).sum()) <= 2


def test_without_heldout_the_bulk_of_training_samples_calibrates() -> None:
    calibration, plain, bad = simulate(heldout=0, training=150, effect=5.0, use_heldout=False)
    assert calibration.flagged(bad).float().mean() > 0.9
    assert calibration.flagged(plain).float().mean() < 0.1


def test_a_single_visit_condemns_nobody() -> None:
    calibration, _, _ = simulate(heldout=60, training=5, effect=0.0)
    for _ in range(calibration.minimum_visits - 1):
        calibration.add(["new"], [0], torch.tensor([[-50.0]]), step=99)
        assert not calibration.flagged(["new"]).item()
    calibration.add(["new"], [0], torch.tensor([[-50.0]]), step=100)
    assert calibration.flagged(["new"]).item()
    assert calibration.first_flagged["new"] == 100


def test_visits_without_a_bucket_are_no_evidence() -> None:
    calibration, _, _ = simulate(heldout=60, training=5, effect=0.0)
    before = calibration.scores(["plain 0"])
    calibration.add(["plain 0"], [None], torch.tensor([[-50.0]]), step=1)
    assert torch.equal(calibration.scores(["plain 0"]), before)


def test_scaled_evidence_has_unit_variance_for_few_and_many_visits() -> None:
    generator = torch.Generator().manual_seed(0)
    evidence = Evidence(1, window=12)
    for index in range(3000):
        own = 0.6 * torch.randn(1, generator=generator)
        (row,) = evidence.rows([str(index)])
        for _ in range(3 if index % 2 else 40):
            value = own + 0.8 * torch.randn(1, generator=generator)
            evidence.add(row, value.double(), value.double())
    assert evidence.share_between_samples().item() == pytest.approx(0.36, abs=0.04)
    scaled = evidence.scaled(torch.tensor([0.36], dtype=torch.float64))[:, 0]
    assert scaled[1::2].std().item() == pytest.approx(1, abs=0.05)
    assert scaled[::2].std().item() == pytest.approx(1, abs=0.05)


def test_signs() -> None:
    evidence = torch.tensor([[-2.0, -2.0], [1.0, 1.0]])
    assert signed_score(evidence, "low").tolist() == [2.0, -1.0]
    assert signed_score(evidence, "high").tolist() == [-2.0, 1.0]
    assert signed_score(evidence, "unknown").tolist() == [2.0, 1.0]


def test_too_few_heldout_samples_are_refused_or_named() -> None:
    calibration = Calibration(1, scored=slice(0, 1), memorized_when="low", buckets=1, false_positive_rate=0.01)
    assert calibration.require_heldout(99) == "order statistic"
    assert calibration.require_heldout(98) == "normal distribution"
    with pytest.raises(CalibrationError, match="7 held-out samples"):
        calibration.require_heldout(7)
    with pytest.raises(CalibrationError, match="false_positive_rate=0"):
        Calibration(1, scored=slice(0, 1), memorized_when="low", buckets=1, false_positive_rate=0)


def test_the_state_round_trips_through_a_safe_checkpoint(tmp_path: object) -> None:
    calibration, plain, bad = simulate(heldout=60, training=20, effect=4.0)
    path = f"{tmp_path}/state.pt"
    torch.save(calibration.state_dict(), path)
    again = Calibration(1, scored=slice(0, 1), memorized_when="low", buckets=2, false_positive_rate=0.05)
    again.load_state_dict(torch.load(path, weights_only=True))
    keys = plain + bad
    assert torch.equal(again.scores(keys), calibration.scores(keys))
    assert again.threshold == calibration.threshold < math.inf
    assert again.first_flagged == calibration.first_flagged
