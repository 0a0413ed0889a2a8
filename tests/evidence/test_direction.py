"""What canaries teach: sign and weight of every value, and from whom they are told apart."""

import pytest
import torch

from memtrain.errors import CalibrationError
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.direction import Direction


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
    def refuse(canaries: int, ordinary: int | None, *, columns: int = 2, heldout: bool = True) -> None:
        known = [f"c{index}" for index in range(canaries)]
        made = Direction(known, width=columns, minimum_visits=6)
        made.require_teachable(ordinary, heldout=heldout)

    refuse(4, 32)
    refuse(4, None)
    with pytest.raises(CalibrationError, match="3 canaries, 100 other"):
        refuse(3, 100)
    with pytest.raises(CalibrationError, match="4 canaries, 31 other"):
        refuse(4, 31)
    with pytest.raises(CalibrationError, match="59 other"):
        refuse(4, 59, columns=30)
    with pytest.raises(CalibrationError, match="no held-out samples"):
        refuse(4, None, heldout=False)


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
