"""How much memory a training will take, before it is run and on any machine.

What: bytes of the weights, their average, the optimizer's states and the gradients, and what a forward and backward
pass takes at most beside them (:mod:`memtrain.models.simulated_memory`). The peak is that of the fullest of three
moments: the backward pass, the optimizer's step, and the encoding of images, where latents are not cached.
States are found by letting the optimizer take one step with a small matrix on the CPU: what has its shape counts for
each weight, what has its rows or columns for these. Optimizers that cannot run there are known by name
(:data:`KNOWN_STATES`).
Source: ours. Cost: seconds. Checked: against CUDA's own count of a full training of Stable Diffusion 1.5
(`benchmarks/memory.py`), and against the allocator's on a CPU (tests).
Cannot: see what :mod:`memtrain.models.simulated_memory` cannot; :attr:`MemoryEstimate.needed` adds a margin for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from memtrain.models.simulated_memory import Counter, peak_of, simulation, without_content

KNOWN_STATES = {"8bit": 2.0, "adafactor": 0.0, "prodigy": 16.0, "lion": 4.0, "sgd": 4.0}
"""Bytes for each weight by a part of the optimizer's name in lower case, where it cannot be tried; others: 8."""
MARGIN, DRIVER = 0.04, 600 << 20
"""Share of the peak that an allocator cannot use, and bytes that CUDA takes for itself and for workspaces."""

OptimizerMaker = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of a training on one device.

    Attributes:
        weights: of the denoiser, adapters included.
        others: of further parts that are on the device, by name.
        average: of the trained weights' average.
        states: of the optimizer.
        gradients: of the trained weights.
        passes: at most during forward and backward pass, beyond the weights; gradients as far as they exist then.
        step: temporaries of the optimizer's step, and of the average's.
        encoding: at most while images are encoded, beyond the weights; 0 where latents are cached.
        trained: number of trained weights.
        frozen: number of the denoiser's other weights.
    """

    weights: int
    others: Mapping[str, int] = field(default_factory=dict)
    average: int = 0
    states: int = 0
    gradients: int = 0
    passes: int = 0
    step: int = 0
    encoding: int = 0
    trained: int = 0
    frozen: int = 0

    @property
    def standing(self) -> int:
        """What is there all the time."""
        return self.weights + sum(self.others.values()) + self.average + self.states

    @property
    def moments(self) -> dict[str, int]:
        """The peak of each moment."""
        return {
            "forward and backward pass": self.standing + self.passes,
            "optimizer step": self.standing + self.gradients + self.step,
            "encoding of images": self.standing + self.encoding,
        }

    @property
    def peak(self) -> int:
        """Bytes of tensors at the fullest moment."""
        return max(self.moments.values())

    @property
    def needed(self) -> int:
        """Bytes of a GPU that hold the peak, with a margin for what is not seen."""
        return int(self.peak * (1 + MARGIN)) + DRIVER

    def said(self) -> dict[str, Any]:
        """Plain types, in bytes."""
        parts = {name: getattr(self, name) for name in ("weights", "average", "states", "gradients", "passes", "step")}
        numbers = {"trained": self.trained, "frozen": self.frozen, "encoding": self.encoding}
        return {**numbers, **parts, "others": dict(self.others), "peak": self.peak, "needed": self.needed}


def estimate_memory(
    denoiser: nn.Module,
    call: Callable[[], Mapping[str, Any]],
    *,
    autocast: torch.dtype | None = None,
    optimizer: OptimizerMaker | None = None,
    average: bool = False,
    foreach: bool = True,
    others: Mapping[str, nn.Module] | None = None,
    encode: Callable[[Mapping[str, nn.Module]], Any] | None = None,
    weight_bits: int | None = None,
) -> MemoryEstimate:
    """Simulate a training step.

    Args:
        denoiser: as it is trained (types, adapters, checkpointing, what is frozen); on the meta device, where weights
            need not exist, or any other. It is left as it is.
        call: makes the arguments of its forward; `args` in it stands for positional ones.
        autocast: type of mixed precision; None for none.
        optimizer: makes the optimizer of parameters; default AdamW.
        average: whether an average of the trained weights is kept on the device.
        foreach: whether optimizer and average work on all weights at once, as on a GPU, and so hold a copy of them.
        others: parts that are on the device, too.
        encode: encodes a batch of images, given `others`; None where latents are cached.
        weight_bits: bits of a frozen matrix where the base model is quantised.

    Returns:
        The estimate.
    """
    with simulation() as counter:
        denoiser = without_content(denoiser).train()
        _hold(counter, denoiser)
        trained = [one for one in denoiser.parameters() if one.requires_grad]
        sizes, shapes = [_bytes(one) for one in trained], [tuple(one.shape) for one in trained]
        weights = sum(map(_bytes, [*denoiser.parameters(), *denoiser.buffers()]))
        numbers = sum(one.numel() for one in denoiser.parameters()), sum(one.numel() for one in trained)
        passes = peak_of(counter, lambda: _step(denoiser, call(), autocast))
        parts = {name: without_content(part) for name, part in (others or {}).items()}
        for part in parts.values():
            _hold(counter, part)
        encoding = 0 if encode is None else peak_of(counter, lambda: _without_graph(encode, parts))
        saved = 0
        if weight_bits is not None:
            saved = sum(_saved(one, weight_bits) for one in denoiser.modules() if isinstance(one, nn.Linear))
    average_bytes = sum(sizes) if average else 0
    return MemoryEstimate(
        weights=weights - saved,
        others={name: sum(map(_bytes, [*part.parameters(), *part.buffers()])) for name, part in parts.items()},
        average=average_bytes,
        states=state_bytes(optimizer, shapes),
        gradients=sum(sizes),
        passes=passes,
        step=sum(sizes) if foreach else 2 * max(sizes, default=0),
        encoding=encoding,
        trained=numbers[1],
        frozen=numbers[0] - numbers[1],
    )


def _hold(counter: Counter, module: nn.Module) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        counter.hold(tensor)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _saved(layer: nn.Linear, bits: int) -> int:
    """Bytes that a quantised frozen matrix is smaller by; its scales, one of 64 numbers in 8 bits, are counted."""
    if layer.weight.requires_grad:
        return 0
    return _bytes(layer.weight) - layer.weight.numel() * bits // 8 - layer.weight.numel() // 64


def _step(denoiser: nn.Module, call: Mapping[str, Any], autocast: torch.dtype | None) -> None:
    given = dict(call)
    positional = given.pop("args", ())
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        output = denoiser(*positional, **given)
        prediction = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        loss = (prediction.float() - torch.empty(prediction.shape)).square().flatten(1).mean(1).mean()
    loss.backward()


@torch.no_grad()
def _without_graph(encode: Callable[[Mapping[str, nn.Module]], Any], parts: Mapping[str, nn.Module]) -> None:
    encode(parts)


def state_bytes(optimizer: OptimizerMaker | None, shapes: Iterable[tuple[int, ...]]) -> int:
    """Bytes of an optimizer's states.

    Args:
        optimizer: makes it; default AdamW.
        shapes: of the trained weights.
    """
    optimizer = optimizer or torch.optim.AdamW
    shapes = list(shapes)
    rows, columns = 192, 320
    try:
        state = _states_of(optimizer, (rows, columns))
    except Exception:
        # It needs a GPU, or more than a matrix.
        return int(sum(map(_numel, shapes)) * _known_states(optimizer))
    numel = rows * columns
    each = sum(_bytes(one) / numel for one in state if one.numel() == numel)
    by_row, by_column = (sum(one.element_size() for one in state if one.numel() == count) for count in (rows, columns))
    total = sum(each * _numel(shape) for shape in shapes)
    for shape in shapes:
        if len(shape) > 1:
            total += by_row * shape[0] + by_column * _numel(shape[1:])
        elif by_row:
            total += 4 * shape[0]
    return int(total)


def _states_of(optimizer: OptimizerMaker, shape: tuple[int, int]) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        weight = nn.Parameter(torch.randn(shape))
        made = optimizer([weight])
        weight.grad = torch.randn(shape)
        made.step()
    return [value for value in made.state[weight].values() if isinstance(value, Tensor)]


def _known_states(optimizer: Any) -> float:
    names = " ".join(str(getattr(one, "__qualname__", one)) for one in (optimizer, getattr(optimizer, "func", "")))
    return next((size for part, size in KNOWN_STATES.items() if part in names.lower()), 8.0)


def _numel(shape: Iterable[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
