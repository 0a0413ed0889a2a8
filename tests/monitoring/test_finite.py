"""NaN and infinity in training: where they begin, and what is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from memtrain.errors import TrainingError
from memtrain.monitoring.finite import ALL_LOST, FiniteWatch, HostNumbers, all_finite
from memtrain.monitoring.host import Host

NAN, INF = float("nan"), float("inf")


def weights(value: float = 1.0) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.tensor([1.0, value]))]


def seen(*losses: float) -> FiniteWatch:
    watch = FiniteWatch()
    for batch, loss in enumerate(losses):
        watch.loss(torch.tensor(loss), batch=batch, keys=[f"sample {batch}"])
    return watch


@pytest.mark.parametrize("bad", [NAN, INF])
def test_the_first_batch_without_a_finite_loss_is_named_with_its_samples(bad: float) -> None:
    fault = seen(1.0, bad, 1.0, bad).fault(weights(NAN))
    assert fault is not None
    assert (fault.loss, fault.gradient, fault.keys) == (1, None, ["sample 1"])
    assert "The loss became NaN or infinite first, in batch 1; samples in that batch: 'sample 1'" in fault.sentence()


def test_a_gradient_that_broke_before_the_loss_is_the_cause() -> None:
    watch, parameters = seen(1.0), weights()
    parameters[0].grad = torch.tensor([0.0, INF, 0.0])
    watch.gradient(parameters, batch=0)
    watch.loss(torch.tensor(NAN), batch=1)
    fault = watch.fault(weights(NAN))
    assert fault is not None
    assert "The gradient became NaN or infinite first, in batch 0, where the loss was finite" in fault.sentence()
    assert fault.keys == ["sample 0"]


def test_finite_weights_are_no_fault_and_what_was_seen_is_forgotten() -> None:
    """As after a step that the loss scaler of fp16 left out."""
    watch = seen(1.0, INF, 1.0)
    assert watch.fault(weights()) is None
    watch.loss(torch.tensor(NAN), batch=3, keys=["sample 3"])
    fault = watch.fault(weights(NAN))
    assert fault is not None and fault.loss == 3


def test_losses_of_which_none_is_finite_are_a_fault_although_every_step_is_left_out() -> None:
    assert seen(*[NAN] * (ALL_LOST - 1)).fault(weights()) is None
    fault = seen(*[NAN] * ALL_LOST).fault(weights())
    assert fault is not None and not fault.weights and fault.loss == 0


def test_weights_are_looked_at_before_they_are_kept_whatever_was_seen() -> None:
    assert seen(1.0).fault(weights(NAN)) is None
    fault = seen(1.0).fault(weights(NAN), thorough=True)
    assert fault is not None and fault.sentence() == "The weights are not finite"


def test_large_numbers_are_finite() -> None:
    assert all_finite([torch.full((1000,), 3e38), torch.ones(2, dtype=torch.int64), torch.ones(0)])
    assert all_finite([torch.full((1000,), 6e4, dtype=torch.float16), torch.full((9,), 3e38, dtype=torch.bfloat16)])
    assert not all_finite([torch.ones(2), torch.tensor(NAN)])


def test_a_host_is_ended_once_unless_it_watches_by_itself() -> None:
    module = nn.Linear(2, 2)
    host = Host(module, data=None, folder=".")
    numbers = HostNumbers(host)
    with torch.no_grad():
        module.weight.fill_(NAN)
    numbers.see(torch.tensor(NAN), batch=0, keys=["a"])
    with pytest.raises(TrainingError, match="nothing is exported"):
        numbers.require_finite(thorough=False)
    numbers.require_finite(thorough=True)
    host.watches_numbers = True
    HostNumbers(host).require_finite(thorough=True)
