"""What reaches the attention in a forward without hooks, readings in double precision from it, and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from tests.conformance.families import FAMILIES, TEXT, call

EVERY = pytest.mark.parametrize("family", FAMILIES)
JOINT = ("sd3", "flux")


class Tap(TorchFunctionMode):
    """Keeps queries, keys and mask of every attention that sees the text, of so many tokens."""

    def __init__(self, tokens: int = TEXT) -> None:
        super().__init__()
        self.tokens = tokens
        self.seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key = (
                kwargs.get(name, args[i] if len(args) > i else None) for i, name in enumerate(("query", "key"))
            )
            if key.shape[2] in (self.tokens, self.tokens + 16):
                self.seen.append((query.detach().clone(), key.detach().clone(), kwargs.get("attn_mask")))
        return func(*args, **kwargs)


def oracle(
    family: str, model: nn.Module, forward: Callable[[], Any] | None = None, *, tokens: int = TEXT
) -> list[dict[str, Tensor]]:
    """Per attention call `query`, `key` (text), `attention` and, where joint, `mass`, from an eager forward."""
    with torch.no_grad(), Tap(tokens) as tap:
        forward() if forward else model(**call(family)[0])
    found = []
    for query, key, mask in tap.seen:
        text = slice(None)
        if family in JOINT:
            image = slice(0, 16) if family == "sd3" else slice(tokens, None)
            text = slice(16, None) if family == "sd3" else slice(0, tokens)
            query = query[:, :, image]
        logits = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
        bias = 0.0 if mask is None else mask.double()
        joint = torch.softmax(logits + bias, dim=-1)
        conditional = torch.softmax(logits[..., text] + bias, dim=-1).mean(dim=(1, 2))
        mass = joint[..., text].sum(-1).mean(dim=(1, 2))
        found.append({"query": query, "key": key[:, :, text], "attention": conditional, "mass": mass})
    return found


def observe(
    family: str,
    model: nn.Module,
    probe: DenoiserProbe,
    forward: Callable[[], Any] | None = None,
    *,
    penalty: float = 0.0,
) -> tuple[Observation, list[Tensor]]:
    """One training step without an optimizer: the observation and every parameter's gradient."""
    model.zero_grad()
    observation = Observation([f"sample {index}" for index in range(3)])
    probe.begin(observation)
    result = forward() if forward else model(**call(family)[0])
    loss = result.sample.float().square().mean()
    if penalty:
        loss = loss + penalty * observation.entropy().mean()
    loss.backward()
    return probe.end(), gradients(model)


def gradients(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters() if p.requires_grad]


def assert_reads(observation: Observation, expected: list[dict[str, Tensor]], *, atol: float = 1e-6) -> None:
    assert len(observation.token_attention) == len(expected) > 0
    for reading, truth in zip(observation.token_attention.values(), expected, strict=True):
        assert reading.dtype == torch.float32
        torch.testing.assert_close(reading.double(), truth["attention"], atol=atol, rtol=0)


def assert_same(found: list[Tensor], expected: list[Tensor], *, exact: bool = True) -> None:
    assert sum(float(gradient.abs().sum()) for gradient in expected) > 0
    for gradient, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(
            gradient, truth, **({"atol": 0, "rtol": 0} if exact else {"atol": 1e-5, "rtol": 1e-4})
        )


def assert_no_hooks(model: nn.Module) -> None:
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert "DenoiserProbe" not in repr([vars(module).get("_compiled_call_impl") for module in model.modules()])


def plain(family: str, model: nn.Module) -> list[Tensor]:
    """Gradients of the same step, unwatched."""
    model.zero_grad()
    model(**call(family)[0]).sample.float().square().mean().backward()
    return gradients(model)
