"""Hooks around a call: order, other arguments, exceptions and removal, for plain modules and for compiled ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memtrain.models.call_hooks import hook_calls


class Doubles(nn.Module):
    def forward(self, tensor: Tensor, *, fail: bool = False) -> Tensor:
        if fail:
            raise ValueError("asked for")
        return 2 * tensor


@pytest.fixture(params=["plain", "in place", "wrapped"])
def host(request: pytest.FixtureRequest) -> Any:
    module = Doubles()
    if request.param == "in place":
        module.compile(backend="eager")
    return torch.compile(module, backend="eager") if request.param == "wrapped" else module


def test_hooks_run_in_the_order_they_were_attached_and_can_be_removed_in_any(host: Any) -> None:
    before_all = getattr(host, "_compiled_call_impl", None)
    seen: list[Any] = []

    def add(number: float) -> Any:
        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            assert module is host
            seen.append(float(args[0]))
            return (args[0] + number,), kwargs

        return before

    undo = [hook_calls(host, add(1), lambda module, args, result: seen.append(("after", float(result))))]
    undo.append(hook_calls(host, add(10)))
    undo.append(hook_calls(host, lambda module, args, kwargs: seen.append(float(args[0]))))
    assert float(host(torch.ones(()))) == 24
    assert seen == [1.0, 2.0, 12.0, ("after", 24.0)]
    seen.clear()
    undo[0]()
    assert float(host(torch.ones(()))) == 22
    assert seen == [1.0, 11.0]
    undo[1]()
    undo[2]()
    seen.clear()
    assert float(host(torch.ones(()))) == 2
    assert seen == []
    assert not host._forward_pre_hooks
    assert getattr(host, "_compiled_call_impl", None) is before_all


def test_what_comes_last_comes_after_an_exception_too(host: Any) -> None:
    seen: list[Any] = []
    hook_calls(host, lambda module, args, kwargs: None, lambda module, args, result: seen.append(result))
    with pytest.raises(ValueError, match="asked for"):
        host(torch.ones(()), fail=True)
    assert seen == [None]
