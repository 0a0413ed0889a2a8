"""Evidence and flags on simulated signals: the stated false-positive rate, power, and resuming."""

import math

import pytest
import torch

from memtrain.calibration import Calibration, length_edges, signed_score
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
    rows = evidence.rows([str(index) for index in range(3000)])
    own = 0.6 * torch.randn(3000, 1, generator=generator, dtype=torch.float64)
    for visit in range(40):
        chosen = rows if visit < 3 else rows[::2]
        value = own[chosen] + 0.8 * torch.randn(len(chosen), 1, generator=generator, dtype=torch.float64)
        evidence.add(chosen, value, value)
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


def test_visits_without_a_value_are_no_evidence_of_that_value() -> None:
    evidence, dense = Evidence(2, window=4), Evidence(1, window=4)
    (row,), (alone,) = evidence.rows(["a"]), dense.rows(["a"])
    for index in range(9):
        value = torch.tensor([float(index), math.nan if index % 3 else 2.0 * index], dtype=torch.float64)
        evidence.add([row], value[None], value[None])
        if index % 3 == 0:
            dense.add([alone], value[None, 1:], value[None, 1:])
    assert evidence.visits[row].tolist() == [9, 3]
    assert evidence.total[row].tolist() == [36, 18]
    assert evidence.mean[row, 1] == dense.mean[alone, 0]
    assert evidence.dilution[row, 1] == dense.dilution[alone, 0]


def test_length_classes_have_their_share_of_heldout_samples() -> None:
    assert length_edges([]) == []
    assert length_edges([7] * 200) == [], "one length is one class"
    assert length_edges(list(range(40))) == [], "too few for two classes"
    assert length_edges(list(range(96))) == [32, 64]


def by_length(edges: list[int]) -> float:
    """Mean score of long-captioned samples, when training shifts long captions as a whole."""
    generator = torch.Generator().manual_seed(0)
    calibration = Calibration(
        1, scored=slice(0, 1), memorized_when="high", buckets=1, false_positive_rate=0.05, edges=edges
    )
    held = [f"held {index}" for index in range(90)]
    lengths = [30.0 if index % 9 == 0 else 8.0 for index in range(90)]
    plain = [f"long {index}" for index in range(60)]
    shift = torch.tensor([2.0 if length > 20 else 0.0 for length in lengths])[:, None]
    for step in range(30):
        calibration.add_heldout(held, [0] * 90, torch.randn(90, 1, generator=generator) + shift, lengths)
        values = 2.0 + torch.randn(60, 1, generator=generator)
        calibration.add(plain, [0] * 60, values, step=step, lengths=[30.0] * 60)
    return float(calibration.scores(plain).mean())


def test_a_shift_of_long_captions_as_a_whole_is_no_evidence() -> None:
    assert abs(by_length([20])) < 1
    assert by_length([]) > 2, "taken together, long captions would look memorized"


def with_canaries(canaries: int, *, effect: float = 1.5, seed: int = 0) -> tuple[float, float, Calibration]:
    """Recall of memorized samples and share of plain ones flagged; two of eight columns move, one up and one down."""
    generator = torch.Generator().manual_seed(seed)
    known = [f"canary {index}" for index in range(canaries)]
    calibration = Calibration(
        8, scored=slice(0, 8), memorized_when="unknown", buckets=1, false_positive_rate=0.05, canaries=known
    )
    held, plain, bad = ([f"{kind} {i}" for i in range(n)] for kind, n in (("h", 60), ("p", 100), ("b", 20)))
    shift = torch.zeros(8)
    shift[0], shift[1] = effect, -effect
    for step in range(30):
        calibration.add_heldout(held, [0] * 60, torch.randn(60, 8, generator=generator))
        keys = plain + bad + known
        values = torch.randn(len(keys), 8, generator=generator)
        values[len(plain) :] += shift
        calibration.add(keys, [0] * len(keys), values, step=step)
    flagged = calibration.ever_flagged
    return float(flagged(bad).float().mean()), float(flagged(plain).float().mean()), calibration


def test_canaries_teach_sign_and_weight_of_every_column() -> None:
    blind, _, without = with_canaries(0, effect=0.5, seed=3)
    recall, false_alarms, taught = with_canaries(8, effect=0.5, seed=3)
    assert without.direction is None
    assert taught.direction is not None
    assert taught.direction[0] > 0.3
    assert taught.direction[1] < -0.3
    assert taught.direction[2:].abs().max() < 0.7
    assert recall > blind + 0.1
    assert recall > 0.75
    assert false_alarms < 0.12
    assert taught.power() == (8, 8)
    assert with_canaries(3)[2].direction is None, "too few to learn from"


def test_the_direction_survives_canaries_that_return_to_normal() -> None:
    _, _, calibration = with_canaries(8)
    direction = calibration.direction
    generator = torch.Generator().manual_seed(9)
    for step in range(40):
        calibration.add_heldout(
            [f"h {index}" for index in range(60)], [0] * 60, torch.randn(60, 8, generator=generator)
        )
        known = sorted(calibration.canaries)
        calibration.add(known, [0] * 8, torch.randn(8, 8, generator=generator), step=step)
    assert calibration.direction is direction


def test_p_values_are_corrected_for_the_number_of_samples() -> None:
    calibration, plain, bad = simulate(heldout=100, training=150, effect=6.0)
    p = calibration.p_values(plain + bad)
    assert p[len(plain) :].max() < 0.01
    assert p[: len(plain)].min() > 0.01
    assert calibration.p_values(["never seen"]).isnan().all()


def test_visits_of_a_batch_are_taken_one_after_the_other() -> None:
    together, apart = Evidence(2, window=3), Evidence(2, window=3)
    keys = list("abacaab")
    values = torch.randn(7, 2, dtype=torch.float64)
    together.add(together.rows(keys), values, 2 * values)
    for row, value in zip(apart.rows(keys), values, strict=True):
        apart.add([row], value[None], 2 * value[None])
    for name in ("visits", "mean", "dilution", "total"):
        torch.testing.assert_close(getattr(together, name), getattr(apart, name))


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


def test_visits_are_counted_without_samples_being_made_up() -> None:
    calibration, plain, _ = simulate(heldout=20, training=3, effect=0.0)
    known = list(calibration.samples.row)
    assert calibration.counted_visits(["new", plain[1]]) == [0, 30]
    calibration.add([plain[1], plain[0]], [0, None], torch.zeros(2, 1), step=31)
    assert calibration.counted_visits([plain[0], plain[1]]) == [30, 31]
    assert list(calibration.samples.row) == known
