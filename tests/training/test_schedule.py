"""Learning rates at the corners of the schedules, and who may say what they are."""

import math
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from transformers.optimization import Adafactor

from memtrain.errors import ConfigurationError
from memtrain.training.schedule import optimizer_of, with_warmup


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


def test_every_other_schedule_warms_up_and_ends_near_zero() -> None:
    linear, square, twice = (rates(name) for name in ("linear", "polynomial", "cosine_with_restarts"))
    assert linear[:5] == square[:5] == twice[:5] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert linear[4:] == pytest.approx([2.0 * left / 8 for left in range(8, -1, -1)])
    assert square[8] == pytest.approx(0.5, abs=1e-6), "half of the way, squared"
    assert twice[6:9] == pytest.approx([1.0, 2 * (1 + math.cos(math.pi * 0.75)) / 2, 2.0]), "from the peak again"
    assert max(linear[12], square[12], twice[12]) < 1e-6


def weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(2))]


def test_a_schedule_of_torch_is_stepped_by_optimizer_steps() -> None:
    optimizer = torch.optim.SGD(weights(), lr=2.0)
    made = with_warmup(optimizer, partial(StepLR, step_size=3, gamma=0.1), 0, 12)
    assert made["lr_scheduler"]["interval"] == "step"
    assert isinstance(made["lr_scheduler"]["scheduler"], StepLR)
    with pytest.raises(ConfigurationError, match=r"warmup_steps=5 with a schedule by class path\n.*OneCycleLR"):
        with_warmup(optimizer, partial(StepLR, step_size=3), 5, 12)
    with pytest.raises(ConfigurationError, match="waits for a metric"):
        with_warmup(optimizer, ReduceLROnPlateau, 0, 12)


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [({}, 0.5, 0.5), ({"lr": 0.5}, None, 0.5), ({"lr": 0.5}, 0.5, 0.5), ({"lr": 1e-3}, 0.5, 0.5)],
    ids=["module", "optimizer", "both alike", "what its class has"],
)
def test_a_learning_rate_may_be_given_once(own: dict[str, float], given: float | None, expected: float) -> None:
    optimizer = optimizer_of(weights(), partial(torch.optim.AdamW, **own), learning_rate=given)
    assert [group["lr"] for group in optimizer.param_groups] == [optimizer.defaults["lr"]] == [expected]


def test_two_learning_rates_and_none_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"learning_rate=0.1 of the module, lr=0.5 of AdamW\n.*one learning rate\n"
    ):
        optimizer_of(weights(), partial(torch.optim.AdamW, lr=0.5), learning_rate=0.1)
    with pytest.raises(ConfigurationError, match=r"No learning rate is given, and AdamW has lr=0.001"):
        optimizer_of(weights(), torch.optim.AdamW, learning_rate=None)
    assert optimizer_of(weights(), None, learning_rate=None).defaults["lr"] == 1e-5


def test_an_optimizer_that_finds_its_rate_itself_gets_none() -> None:
    optimizer = optimizer_of(weights(), Adafactor, learning_rate=None)
    assert with_warmup(optimizer, "constant", 0, 12) == {"optimizer": optimizer}
    with pytest.raises(ConfigurationError, match="finds its learning rate itself"):
        with_warmup(optimizer, "cosine", 0, 12)
    with pytest.raises(ConfigurationError, match=r"learning_rate=0.1, but Adafactor finds its own"):
        optimizer_of(weights(), Adafactor, learning_rate=0.1)
    fixed = partial(Adafactor, relative_step=False, scale_parameter=False)
    assert optimizer_of(weights(), fixed, learning_rate=0.1).param_groups[0]["lr"] == 0.1
