"""Memory estimates: against the allocator's own count, closed forms, and what optimizers keep."""

from __future__ import annotations

import copy
import sys
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.profiler import ProfilerActivity, profile

from memtrain.models.simulated_memory import peak_of, simulation, without_content
from memtrain.training.memory_estimate import MemoryEstimate, estimate_memory, state_bytes
from tests.conftest import ROOT

BATCH, SIDE, TOKENS = 64, 8, 77


@pytest.fixture(scope="module")
def unet(pipeline: StableDiffusionPipeline) -> UNet2DConditionModel:
    return copy.deepcopy(pipeline.unet).train()


def call(unet: UNet2DConditionModel, make: Any = torch.zeros, batch: int = BATCH) -> dict[str, Any]:
    width, channels = unet.config.cross_attention_dim, unet.config.in_channels
    steps = torch.zeros(batch, dtype=torch.int64)
    return {"args": (make(batch, channels, SIDE, SIDE), steps, make(batch, TOKENS, width))}


def allocated(run: Any) -> int:
    """Bytes that the allocator gave out at most while `run` ran, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    found = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(found, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_the_embedded_model_takes_what_the_allocator_gives_out(checkpointing: bool) -> None:
    unet = UNet2DConditionModel.from_pretrained(ROOT / "assets" / "tiny-sd", subfolder="unet").train()
    test_a_step_takes_what_the_allocator_gives_out(unet, checkpointing)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_takes_what_the_allocator_gives_out(unet: UNet2DConditionModel, checkpointing: bool) -> None:
    unet.enable_gradient_checkpointing() if checkpointing else unet.disable_gradient_checkpointing()
    given = call(unet)

    def step() -> None:
        prediction = unet(*given["args"]).sample
        (prediction - torch.zeros_like(prediction)).square().flatten(1).mean(1).mean().backward()

    step()
    unet.zero_grad()
    found = estimate_memory(unet, partial(call, unet, torch.empty), foreach=False)
    assert found.passes == pytest.approx(allocated(step), rel=0.1)
    assert found.trained == sum(one.numel() for one in unet.parameters())
    optimizer = torch.optim.AdamW(unet.parameters(), foreach=False)
    first = allocated(optimizer.step)
    assert found.states + found.step == pytest.approx(first, rel=0.1)
    assert found.weights == sum(4 * one.numel() for one in unet.parameters())
    unet.zero_grad()


def test_checkpointing_takes_less_and_larger_batches_more(unet: UNet2DConditionModel) -> None:
    unet.disable_gradient_checkpointing()
    plain = estimate_memory(unet, partial(call, unet, torch.empty))
    larger = estimate_memory(unet, partial(call, unet, torch.empty, 2 * BATCH))
    unet.enable_gradient_checkpointing()
    saving = estimate_memory(unet, partial(call, unet, torch.empty))
    assert saving.passes < plain.passes < larger.passes
    assert saving.standing == plain.standing == larger.standing


def test_nothing_exists_that_is_estimated() -> None:
    """Ten thousand million weights, of which a tenth are trained."""
    with torch.device("meta"):
        layers: Any = nn.Sequential(*(nn.Linear(31623, 31623, bias=False) for _ in range(10))).requires_grad_(False)
        layers[-1].requires_grad_(True)
    size = 31623 * 31623 * 4
    found = estimate_memory(layers, lambda: {"args": (torch.empty(1, 31623),)}, average=True)
    assert (found.weights, found.gradients, found.average) == (10 * size, size, size)
    assert found.states == 2 * size
    assert (found.trained, found.frozen) == (size // 4, 9 * size // 4)
    assert found.peak == 10 * size + 3 * size + size + size
    assert found.needed > found.peak


def test_a_quantised_base_takes_fewer_bytes() -> None:
    with torch.device("meta"):
        layer = nn.Linear(1024, 1024, bias=False).to(torch.bfloat16).requires_grad_(False)
    model = nn.Sequential(layer, nn.Linear(1024, 8))
    given = {"args": (torch.empty(2, 1024),)}
    plain, four = (
        estimate_memory(model, lambda: given, autocast=torch.bfloat16, weight_bits=bits) for bits in (None, 4)
    )
    assert plain.weights - four.weights == 1024 * 1024 * 2 - 1024 * 1024 // 2 - 1024 * 1024 // 64


def test_attention_keeps_no_matrix() -> None:
    """Queries, keys, values, the output, and a number for each query; `N × N` would be 64 MiB."""
    with simulation() as counter:
        parts = [torch.empty(1, 1, 4096, 64, requires_grad=True) for _ in range(3)]
        made = []
        taken = peak_of(counter, lambda: made.append(nn.functional.scaled_dot_product_attention(*parts)))
    assert taken == 4096 * 64 * 4 + 4096 * 4


def test_what_has_ended_is_not_counted() -> None:
    with simulation() as counter:
        kept = torch.empty(1000)
        before = counter.now
        for _ in range(3):
            torch.empty(10**6) + 1
        assert counter.now == before == 4096
        assert counter.peak == 4096 + 2 * 4_000_256
        del kept
        assert counter.now == 0


def test_a_copy_without_content_shares_what_is_shared() -> None:
    first = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": first, "b": first})
    with simulation():
        made: Any = without_content(model)
        assert made["a"].weight is made["b"].weight is not first.weight
    assert type(first.weight.data) is torch.Tensor


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (None, 2 * 4 * (300 * 200 + 50)),
        (partial(torch.optim.SGD, lr=0.1), 0),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), 4 * (300 * 200 + 50)),
        # Factors of the second moment: a number for each row and each column, and one for each weight of a vector.
        (torch.optim.Adafactor, 4 * (300 + 200 + 50)),
    ],
)
def test_states_of_optimizers(optimizer: Any, expected: int) -> None:
    assert state_bytes(optimizer, [(300, 200), (50,)]) == expected


def test_an_optimizer_that_needs_a_gpu_is_known_by_name() -> None:
    class AdamW8bit(torch.optim.AdamW):
        def step(self, closure: Any = None) -> None:
            raise RuntimeError("no GPU")

    assert state_bytes(partial(AdamW8bit, lr=1e-3), [(300, 200)]) == 2 * 300 * 200


def test_the_fullest_moment_counts() -> None:
    found = MemoryEstimate(
        weights=10, others={"vae": 5}, average=2, states=3, gradients=4, passes=7, step=1, encoding=6
    )
    assert found.moments == {"forward and backward pass": 27, "optimizer step": 25, "encoding of images": 26}
    assert found.peak == 27


def test_the_benchmark_knows_its_models() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from model_shapes import SHAPES
    finally:
        sys.path.pop(0)
    with torch.device("meta"):
        counts = {name: sum(one.numel() for one in shape.make().parameters()) for name, shape in SHAPES.items()}
    # As their publishers state them, in millions.
    expected = {"sd15": 860, "sdxl": 2567, "sd35_medium": 2243, "flux1_dev": 11901}
    assert {name: round(count / 1e6) for name, count in counts.items()} == pytest.approx(expected, rel=0.01)
