"""The probe on a denoiser that torch.compile has got hold of, in every way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from memtrain.errors import ProbeError
from memtrain.models.probe import DenoiserProbe
from tests.conformance.families import FAMILIES, call, gradient_checkpointing
from tests.conformance.probe_oracle import assert_reads, assert_same, observe, oracle, plain


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


compiling = pytest.mark.filterwarnings(
    # torch.compile looks at `.grad` of every input while it traces: https://github.com/pytorch/pytorch/pull/30531
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"
)

AUTOGRAD, TRACE = "aot_eager", "eager"
"""Backends: the first also takes the backward apart, at half of the cost of a test; the second runs what was traced.

Who calls the compiled code, whether it breaks and whether it is kept is decided while tracing, the same for both.
"""

COMPILED: dict[str, Callable[[Any], Any]] = {
    "wrapped": lambda model: torch.compile(model, backend=AUTOGRAD),
    "wrapped, traced": lambda model: torch.compile(model, backend=TRACE),
    "in place": lambda model: model.compile(backend=TRACE) or model,
    "fullgraph": lambda model: torch.compile(model, backend=TRACE, fullgraph=True),
    "repeated blocks": lambda model: (
        [module.compile(backend=AUTOGRAD) for module in model.modules() if type(module).__name__.endswith("Block")]
        and model
    ),
}


@compiling
@pytest.mark.parametrize(
    ("family", "way"),
    [
        *(pytest.param(family, "wrapped", marks=pytest.mark.slow) for family in FAMILIES),
        *(
            pytest.param(family, way, marks=[] if way == "in place" else pytest.mark.slow)
            for family in ("unet", "flux")
            for way in ("in place", "fullgraph", "repeated blocks")
        ),
    ],
)
def test_compiled_before_attaching(family: str, model: nn.Module, way: str) -> None:
    expected, untouched = oracle(family, model), plain(family, model)
    compiled = COMPILED[way](model)
    with DenoiserProbe(compiled, sites="*") as probe:
        for _ in range(2):
            observation, found = observe(family, model, probe, lambda: compiled(**call(family)[0]))
            assert_reads(observation, expected)
            assert_same(found, untouched, exact=False)


@compiling
@pytest.mark.slow
@pytest.mark.parametrize("family", ["unet", "flux"])
def test_compiled_with_gradient_checkpointing(family: str, model: nn.Module) -> None:
    expected, untouched = oracle(family, model), plain(family, model)
    gradient_checkpointing(model, reentrant=False)
    compiled = COMPILED["wrapped"](model)
    with DenoiserProbe(compiled, sites="*") as probe:
        observation, found = observe(family, model, probe, lambda: compiled(**call(family)[0]))
    assert_reads(observation, expected)
    assert_same(found, untouched, exact=False)


@compiling
@pytest.mark.parametrize(
    ("family", "way"),
    [
        *(pytest.param(family, "wrapped, traced", marks=pytest.mark.slow) for family in FAMILIES),
        ("unet", "in place"),
    ],
)
def test_attached_after_the_first_compiled_call_raises(family: str, model: nn.Module, way: str) -> None:
    compiled = COMPILED[way](model)
    compiled(**call(family)[0]).sample.square().mean().backward()
    with (
        DenoiserProbe(compiled) as probe,
        pytest.raises(ProbeError, match=r"before the first call of a compiled denoiser, or call torch._dynamo.reset"),
    ):
        observe(family, model, probe, lambda: compiled(**call(family)[0]))
