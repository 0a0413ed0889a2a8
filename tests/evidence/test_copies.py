"""Each picture against its own edited copies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.copies import WINDOW, Copies

COPIES = {f"p{number}#edit{index}": f"p{number}" for number in range(12) for index in range(3)}


def test_a_picture_counts_relative_to_the_mean_of_its_copies_and_a_copy_to_that_of_the_others() -> None:
    copies = Copies({"a#0": "a", "a#1": "a", "b#0": "b"})
    first = copies.take(["a#0", "a#1", "b#0"], torch.tensor([[1.0], [3.0], [8.0]]))
    assert first.flatten().tolist() == [1.0, 2.0, 8.0], "nothing was known of the other copies but a#0, then"
    assert copies.relative(["a", "b", "c"], torch.tensor([[5.0], [5.0], [5.0]])).flatten().tolist() == [3.0, -3.0, 5.0]
    second = copies.take(["a#0"], torch.tensor([[2.0]]))
    assert second.item() == 2.0 - 3.0
    assert copies.relative(["a"], torch.tensor([[0.0]])).item() == -(1.5 + 3.0) / 2


def test_means_follow_and_what_was_not_seen_counts_for_nothing() -> None:
    copies = Copies({"a#0": "a"})
    for _ in range(6 * WINDOW):
        copies.take(["a#0"], torch.tensor([[4.0, torch.nan]]))
    relative = copies.relative(["a"], torch.tensor([[4.0, 1.0]]))
    assert relative[0, 0].abs() < 1e-6 and relative[0, 1] == 1.0


def test_without_copies_nothing_changes() -> None:
    z = torch.randn(3, 2)
    assert Copies().relative(["a", "b", "c"], z) is z and Copies().take(["a", "b", "c"], z) is z


def test_a_saved_state_goes_on() -> None:
    copies, again = Copies(COPIES), Copies(COPIES)
    copies.take(list(COPIES), torch.randn(36, 1))
    again.load_state_dict(copies.state_dict())
    z = torch.randn(36, 1)
    assert torch.equal(again.take(list(COPIES), z), copies.take(list(COPIES), z))


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_all_copies_are_measured_at_an_update_up_to_a_limit(processes: int) -> None:
    assert processes * Copies(COPIES).at_once(processes=processes) >= 36
    many = Copies({f"{number}#0": str(number) for number in range(1000)})
    assert many.at_once(processes=1) == 48 and Copies().at_once(processes=1) == 0


def run(seed: int, *, paired: bool, memorized: int = 0) -> int:
    """Flagged pictures of 12: while the model changes fast, each becomes easier by an amount of its own, copies too."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"p{number}" for number in range(12)]
    calibration = Calibration(1, scored=slice(0, 1), memorized_when="low", buckets=1, minimum_visits=10)
    if paired:
        calibration.copies = Copies(COPIES)

    def visit(levels: Tensor) -> Tensor:
        return (levels + 0.35 * torch.randn(len(levels), generator=generator))[:, None]

    own = -0.45 + 0.25 * torch.randn(12, generator=generator)
    by_heart = torch.tensor([-0.6 * (number < memorized) for number in range(12)])
    for _ in range(10):
        calibration.add_heldout(list(COPIES), [0] * 36, visit(torch.zeros(36)))
    for step in range(24):
        ease = own * min((step + 1) / 5, 1.0)
        for _ in range(3):
            calibration.add(names, [0] * 12, visit(ease + by_heart * min(step / 10, 1.0)), step=step)
        calibration.add_heldout(list(COPIES), [0] * 36, visit(ease.repeat_interleave(3)))
    return int(calibration.ever_flagged(names).sum())


def test_pictures_that_are_merely_easier_are_not_flagged_and_memorized_ones_are() -> None:
    merely_easier = [run(seed, paired=True) for seed in range(4)]
    assert sum(merely_easier) <= 3, "of 48, at a stated 1 %"
    assert sum(run(seed, paired=False) for seed in range(4)) >= 3, "without the comparison more are"
    assert all(run(100 + seed, paired=True, memorized=4) >= 4 for seed in range(2))
