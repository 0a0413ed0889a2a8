"""Learning rates at the corners of both schedules."""

import pytest
import torch

from memtrain.training.schedule import with_warmup


def rates(schedule: str) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    made = with_warmup(optimizer, schedule, 4, 12)  # type: ignore[arg-type]
    assert made["lr_scheduler"]["interval"] == "step"
    seen = []
    for _ in range(12):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made["lr_scheduler"]["scheduler"].step()
    return [*seen, optimizer.param_groups[0]["lr"]]


def test_both_warm_up_linearly_and_cosine_ends_at_zero() -> None:
    constant, cosine = rates("constant"), rates("cosine")
    assert constant[:5] == cosine[:5] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert constant[5:] == [2.0] * 8
    assert cosine[8] == pytest.approx(1.0)
    assert cosine[12] == pytest.approx(0.0, abs=1e-9)
