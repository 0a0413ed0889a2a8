"""Evidence and flags on simulated signals: the stated false-positive rate, power, and resuming."""

import math

import pytest
import torch

from memtrain.errors import CalibrationError
from memtrain.evidence.calibration import MINIMUM_HELDOUT, Calibration, Sign, length_edges, signed_score
from memtrain.evidence.running_means import Evidence


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
    blind, recall, false_alarms = 0.0, 0.0, 0.0
    for seed in range(4):
        found, _, without = with_canaries(0, effect=0.6, seed=seed)
        taught_found, alarms, taught = with_canaries(8, effect=0.6, seed=seed)
        assert without.direction is None
        assert taught.direction is not None
        assert taught.direction[0] > 0.3
        assert taught.direction[1] < -0.3
        assert taught.direction[2:].abs().max() < 0.7
        assert taught.power()[0] >= 7
        blind, recall, false_alarms = blind + found / 4, recall + taught_found / 4, false_alarms + alarms / 4
    assert recall > blind + 0.1
    assert recall > 0.75
    assert false_alarms < 0.12
    assert with_canaries(3)[2].direction is None, "too few to learn from"


def with_unknown_duplicates(columns: int, seed: int) -> tuple[float, float, float, float]:
    """Canaries and duplicates that nobody knows of are visited eight times an epoch, other samples once.

    Returns:
        Share of duplicates, of canaries and of other samples flagged, and the cosine between the direction and the
        shift of three columns in which the first two move away.
    """
    generator = torch.Generator().manual_seed(seed)
    known = [f"canary {index}" for index in range(6)]
    calibration = Calibration(
        columns,
        scored=slice(0, columns),
        memorized_when="unknown",
        buckets=1,
        false_positive_rate=0.02,
        canaries=known,
    )
    held, plain, bad = ([f"{kind} {i}" for i in range(n)] for kind, n in (("h", 60), ("p", 120), ("b", 12)))
    pattern = torch.zeros(columns)
    pattern[:3] = torch.tensor([-1.0, 1.0, -0.7])
    step = 0
    for _ in range(10):
        visits = [key for key in known + bad for _ in range(8)] + plain
        order = torch.randperm(len(visits), generator=generator).tolist()
        for batch in (order[start : start + 24] for start in range(0, len(order), 24)):
            calibration.add_heldout(held, [0] * 60, torch.randn(60, columns, generator=generator))
            keys = [visits[index] for index in batch]
            moved = torch.tensor([key[0] in "bc" for key in keys])[:, None] * min(1.0, step / 40)
            values = 1.2 * moved * pattern + torch.randn(len(keys), columns, generator=generator)
            calibration.add(keys, [0] * len(keys), values, step=step)
            step += 1
    assert calibration.direction is not None
    cosine = torch.nn.functional.cosine_similarity(calibration.direction, pattern.double(), dim=0)
    shares = [float(calibration.ever_flagged(keys).float().mean()) for keys in (bad, known, plain)]
    return shares[0], shares[1], shares[2], float(cosine)


@pytest.mark.parametrize("columns", [7, 16])
def test_duplicates_that_nobody_knows_of_do_not_teach_the_direction(columns: int) -> None:
    found = torch.tensor([with_unknown_duplicates(columns, seed) for seed in range(3)])
    duplicates, canaries, plain, cosine = found.mean(dim=0).tolist()
    assert duplicates > 0.8
    assert canaries > 0.8
    assert plain < 0.05
    assert cosine > 0.7


def test_a_direction_waits_for_ordinary_samples_and_the_run_can_say_so() -> None:
    calibration = Calibration(
        2, scored=slice(0, 2), memorized_when="unknown", buckets=1, canaries=[f"c{index}" for index in range(5)]
    )
    generator = torch.Generator().manual_seed(0)
    often, once = [*sorted(calibration.canaries), *(f"d{index}" for index in range(34))], [f"p{i}" for i in range(120)]
    for step in range(24):
        calibration.add_heldout([f"h{i}" for i in range(60)], [0] * 60, torch.randn(60, 2, generator=generator))
        # An epoch takes six steps: by its end the duplicates have visits enough, and are more than a direction needs.
        keys = often + once[20 * (step % 6) : 20 * (step % 6) + 20]
        values = torch.randn(len(keys), 2, generator=generator)
        values[:39] -= 0.5
        calibration.add(keys, [0] * len(keys), values, step=step)
        if step == 12:
            assert calibration.direction is None
            assert calibration.untaught() == (5, 20)
    calibration.add_heldout(["h0"], [0], torch.zeros(1, 2))
    assert calibration.direction is not None
    assert calibration.untaught() is None


def test_too_few_canaries_or_ordinary_samples_are_refused_before_any_work() -> None:
    def make(canaries: int, *, columns: int = 2, heldout: bool = True) -> Calibration:
        known = [f"c{index}" for index in range(canaries)]
        scored = slice(0, columns)
        return Calibration(columns, scored=scored, memorized_when="unknown", buckets=1, canaries=known, heldout=heldout)

    make(4).require_teachable(32)
    make(4).require_teachable(None)
    for calibration, ordinary, found in (
        (make(3), 100, "3 canaries, 100 other"),
        (make(4), 31, "4 canaries, 31 other"),
        (make(4, columns=30), 59, "59 other"),
        (make(4, heldout=False), None, "no held-out samples"),
    ):
        with pytest.raises(CalibrationError, match=found):
            calibration.require_teachable(ordinary)


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
    assert (calibration.threshold, calibration.first_flagged, calibration.peak) == (math.inf, {}, {})
    assert float(calibration.moments.count.sum()) == float(calibration.length_moments.count.sum()) == 0


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


@pytest.mark.parametrize("count", [MINIMUM_HELDOUT - 1, MINIMUM_HELDOUT])
def test_p_values_need_as_many_heldout_samples_as_a_threshold(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    calibration = Calibration(1, scored=slice(0, 1), memorized_when="high", buckets=1, minimum_visits=1)
    for step in range(40):
        calibration.add_heldout(
            [f"h{i}" for i in range(count)], [0] * count, torch.randn(count, 1, generator=generator)
        )
        calibration.add(["a"], [0], torch.full((1, 1), 9.0), step=step)
    known = count >= MINIMUM_HELDOUT
    assert bool(calibration.p_values(["a"]).isfinite()) == known == math.isfinite(calibration.threshold)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [0, 1, 2])
def test_evidence_of_few_samples_is_finite_and_a_share_of_their_variance_takes_two(count: int) -> None:
    evidence = Evidence(2, window=4)
    rows = evidence.rows([f"k{index}" for index in range(count)])
    for _ in range(3):
        evidence.add(rows, torch.ones(count, 2), 3 * torch.ones(count, 2))
    share = evidence.share_between_samples()
    assert share.tolist() == ([0.95, 0.95] if count == 2 else [0.0, 0.0])
    for chosen in (None, rows, []):
        found = evidence.scaled(share, chosen)
        assert found.shape == (count if chosen is None else len(chosen), 2)
        assert found.isfinite().all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_heldout_samples_make_no_classes_and_are_refused(count: int) -> None:
    assert length_edges([4, 9][:count]) == []
    with pytest.raises(CalibrationError, match=f"{count} held-out samples"):
        of_two_classes().require_heldout(count)
