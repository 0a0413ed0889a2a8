"""An estimate of a training's memory, before it runs and on any machine.

The estimate adds the bytes of the weights, their average, the optimizer's states, the gradients, and the largest
further memory of a forward and backward pass (:mod:`memtrain.models.simulated_memory`). The peak is the fullest of
three moments: the backward pass, the optimizer's step, and the encoding of images if latents are not cached. The
optimizer takes one step with a small matrix on the CPU to show its states. A state with the matrix's shape counts for
each weight, and a state with its rows or columns counts for these. Optimizers that cannot run there are known by name
(:data:`KNOWN_STATES`).
Source: ours. Cost: seconds. Checked: against CUDA's own count of a full training of Stable Diffusion 1.5
(`benchmarks/memory.py`), and against the allocator's on a CPU (tests).
Cannot: see what :mod:`memtrain.models.simulated_memory` cannot see; :attr:`MemoryEstimate.needed` adds a margin for it.
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
"""Bytes for each weight by a part of the optimizer's name in lower case, if it cannot be tried; the default is 8."""
MARGIN, DRIVER = 0.04, 600 << 20
"""The share of the peak that an allocator cannot use, and the bytes that CUDA takes for itself and for workspaces."""

OptimizerMaker = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """The bytes of a training on one device.

    Attributes:
        weights: the denoiser's weights, including adapters.
        others: the weights of further parts on the device, by name.
        average: the average of the trained weights.
        states: the optimizer's states.
        gradients: the gradients of the trained weights.
        passes: the largest memory of forward and backward pass beyond the weights, with the gradients that exist then.
        step: the temporaries of the optimizer's step and of the average's update.
        encoding: the largest memory of the encoding of images beyond the weights; 0 if latents are cached.
        trained: the number of trained weights.
        frozen: the number of the denoiser's other weights.
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
        """The bytes that are needed all the time."""
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
        """The bytes of tensors at the fullest moment."""
        return max(self.moments.values())

    @property
    def needed(self) -> int:
        """The bytes of a GPU that hold the peak, with a margin for memory that is not seen."""
        return int(self.peak * (1 + MARGIN)) + DRIVER

    def said(self) -> dict[str, Any]:
        """Return the estimate in plain types, in bytes."""
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
        denoiser: the denoiser as it is trained (types, adapters, checkpointing, frozen weights), on any device. On the
            meta device its weights need not exist. The denoiser does not change.
        call: the function that makes the arguments of its forward; `args` in it holds positional ones.
        autocast: the type of mixed precision; None for none.
        optimizer: the function that makes the optimizer of parameters; by default AdamW.
        average: whether an average of the trained weights is kept on the device.
        foreach: whether optimizer and average work on all weights at once, as on a GPU, and so hold a copy of them.
        others: further parts on the device.
        encode: the function that encodes a batch of images, given `others`; None if latents are cached.
        weight_bits: the bits of a frozen matrix if the base model is quantized.

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
    """Return the bytes that quantization saves for a frozen matrix; scales (one of 64 numbers in 8 bits) count."""
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
    """Return the bytes of an optimizer's states.

    Args:
        optimizer: the function that makes the optimizer; by default AdamW.
        shapes: the shapes of the trained weights.
    """
    optimizer = optimizer or torch.optim.AdamW
    shapes = list(shapes)
    rows, columns = 192, 320
    try:
        state = _states_of(optimizer, (rows, columns))
    except Exception:
        # The optimizer needs a GPU, or more than a matrix.
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
