"""Planted copies are edited, and controls hold only where these are found and others are not."""

from __future__ import annotations

import torch

from memtrain.evaluation.stages.measure.controls import chosen_rows, planted_copies, summarize_controls


def test_a_planted_copy_is_brighter_and_nearly_the_same() -> None:
    image = torch.full((1, 3, 40, 40), 100, dtype=torch.uint8)
    image[..., :20] = 200
    copy = planted_copies(image)
    assert copy.shape == image.shape and copy.dtype == torch.uint8
    assert (copy[..., 25:].float() - 105).abs().max() <= 3 and (copy[..., :15].float() - 210).abs().max() <= 3


def test_rows_are_spread_and_bounded() -> None:
    assert chosen_rows(torch.tensor([False, True, True])) == [1, 2]
    rows = chosen_rows(torch.ones(100, dtype=torch.bool))
    assert len(rows) == 16 and rows[0] == 0 and rows[-1] == 99


def test_controls_hold_only_if_both_do() -> None:
    def both(planted: int, unplanted: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(10) < planted, torch.arange(10) < unplanted

    found = {"good": both(10, 0), "blind": both(3, 0), "sees ghosts": both(10, 5), "untried": (torch.ones(0),) * 2}
    said = summarize_controls(found)
    assert {name: one["hold"] for name, one in said.items()} == {
        "good": True,
        "blind": False,
        "sees ghosts": False,
        "untried": None,
    }
    assert (said["blind"]["planted"]["n"], said["blind"]["planted"]["found"]) == (10, 3)
    assert said["untried"]["planted"]["share"] is None
