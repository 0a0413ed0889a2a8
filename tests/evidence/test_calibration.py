"""Evidence and flags on simulated signals: the stated false-positive rate, power, and resuming."""

import math

import pytest
import torch

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.running_means import Sign, signed_score


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


def test_signs() -> None:
    evidence = torch.tensor([[-2.0, -2.0], [1.0, 1.0]])
    assert signed_score(evidence, "low").tolist() == [2.0, -1.0]
    assert signed_score(evidence, "high").tolist() == [-2.0, 1.0]
    assert signed_score(evidence, "unknown").tolist() == [2.0, 1.0]


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


def test_p_values_are_corrected_for_the_number_of_samples() -> None:
    calibration, plain, bad = simulate(heldout=100, training=150, effect=6.0)
    p = calibration.p_values(plain + bad)
    assert p[len(plain) :].max() < 0.03
    assert p[: len(plain)].min() > 0.01
    assert calibration.p_values(["never seen"]).isnan().all()


def test_visits_are_counted_without_samples_being_made_up() -> None:
    calibration, plain, _ = simulate(heldout=20, training=3, effect=0.0)
    known = list(calibration.samples.row)
    assert calibration.counted_visits(["new", plain[1]]) == [0, 30]
    calibration.add([plain[1], plain[0]], [0, None], torch.zeros(2, 1), step=31)
    assert calibration.counted_visits([plain[0], plain[1]]) == [30, 31]
    assert list(calibration.samples.row) == known


def of_two_classes(*, sign: Sign = "low", heldout: bool = True) -> Calibration:
    """Three values, of which flags go by all, with two classes of prompt length and canaries."""
    return Calibration(
        3,
        scored=slice(0, 3),
        memorized_when=sign,
        buckets=2,
        minimum_visits=2,
        heldout=heldout,
        edges=[5],
        canaries=["c0", "k0"],
    )


@pytest.mark.parametrize("heldout", [True, False])
@pytest.mark.parametrize("sign", ["low", "unknown"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_batch_of_any_size_without_counted_visits_changes_nothing(count: int, sign: Sign, heldout: bool) -> None:
    calibration, keys = of_two_classes(sign=sign, heldout=heldout), [f"k{index}" for index in range(count)]
    for lengths in ([4.0, 9.0][:count], [math.nan] * count, None):
        calibration.add(keys, [None] * count, torch.randn(count, 3), step=1, lengths=lengths)
    assert calibration.counted_visits(keys) == [0] * count
    assert calibration.scores(keys).tolist() == [0.0] * count
    assert (calibration.threshold, calibration.first_flagged, calibration.highest) == (math.inf, {}, {})
    assert calibration.bulk.peak.tolist() == [-math.inf] * count
    assert float(calibration.moments.count.sum()) == float(calibration.standardisation.length_moments.count.sum()) == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("heldout", [True, False])
@pytest.mark.parametrize("sign", ["low", "unknown"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_sample_one_and_two_are_judged_by_nobody_and_survive_a_checkpoint(
    count: int, sign: Sign, heldout: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    calibration, keys = of_two_classes(sign=sign, heldout=heldout), [f"k{index}" for index in range(count)]
    held = [f"h{index}" for index in range(count)]
    for step in range(80):
        if heldout:
            calibration.add_heldout(held, [0] * count, torch.randn(count, 3, generator=generator), [4.0, 9.0][:count])
        values = torch.randn(count, 3, generator=generator)
        calibration.add(keys, [0] * count, values, step=step, lengths=[4.0, math.nan][:count])
    again = of_two_classes(sign=sign, heldout=heldout)
    again.load_state_dict(calibration.state_dict())
    for found in (calibration, again):
        assert (found.threshold, found.first_flagged, found.power()) == (math.inf, {}, (0, 2))
        for asked in ([], keys, ["new"]):
            for bools in (found.flagged(asked), found.ever_flagged(asked)):
                assert (bools.dtype, bools.tolist()) == (torch.bool, [False] * len(asked))
            assert (found.ready(asked).dtype, len(found.ready(asked))) == (torch.bool, len(asked))
            assert found.scores(asked).isfinite().all()
            assert found.p_values(asked).isnan().tolist() == [True] * len(asked), "nobody knows the spread from so few"
    assert torch.equal(calibration.scores(keys), again.scores(keys))
