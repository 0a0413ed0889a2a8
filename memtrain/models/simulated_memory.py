"""The memory of a piece of PyTorch code, found by running it on tensors without content.

Under :class:`torch._subclasses.FakeTensorMode` every operation computes shapes and types but no values. So a
model of any size runs on any machine. A dispatch mode counts the bytes of each storage from its birth to its end. So
the peak holds everything that is alive at the same time: activations kept for the backward pass, gradients, values that
gradient checkpointing computes again, and temporaries. These tensors claim to be on the CPU, so the differences of a
GPU are added. Attention keeps what fused kernels keep (queries, keys, values, output and a number for each query) and
no matrix. Under autocast, normalizations run in full precision. Sizes are rounded up to 512 bytes, as in CUDA's
allocator.
Cost: about 0.1 ms an operation: a second for Stable Diffusion 1.5, ten for the largest model.
Cannot: see workspaces of convolutions and matrix products, the pieces that an allocator cannot use, and the driver's
memory (about 0.5 GiB). Code that asks for values of tensors cannot run.
"""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")

PIECE = 512
"""The number of bytes to a multiple of which sizes are rounded up."""


class Counter(TorchDispatchMode):
    """Counts bytes that are alive.

    Attributes:
        now: the bytes at present.
        peak: the most bytes at any moment since :meth:`restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count its results."""
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.hold, result)
        return result

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage once, until it ends."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = -(-storage.nbytes() // PIECE) * PIECE
        self._known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size).atexit = False

    def _gone(self, size: int) -> None:
        self.now -= size

    def restart(self) -> None:
        """Look for the peak from now on."""
        self.peak = self.now


class _Fused(torch.autograd.Function):
    """The memory of a fused attention kernel."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Take a query `(B, H, N, D)`, and key and value `(B, H, M, D)`."""
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the three."""
        return tuple(torch.empty_like(part) for part in ctx.saved_tensors[:3])


@contextmanager
def _as_on_gpu() -> Iterator[None]:
    """Let attention and normalizations keep the same tensors as on a GPU.

    The functions themselves are replaced, because a mode for functions is off when checkpointed parts run again.
    """

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        parts = (query, key, value)
        if torch.is_autocast_enabled("cpu"):
            parts = tuple(part.to(torch.get_autocast_dtype("cpu")) for part in parts)  # type: ignore[assignment]
        result: Tensor = _Fused.apply(*parts)
        return result

    def in_full(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def called(*args: Any, **kwargs: Any) -> Tensor:
            if not torch.is_autocast_enabled("cpu"):
                return norm(*args, **kwargs)
            args, kwargs = tree_map(lambda value: value.float() if _floating(value) else value, (args, kwargs))
            with torch.autocast("cpu", enabled=False):
                return norm(*args, **kwargs)

        return called

    with ExitStack() as exchanged:
        exchanged.enter_context(patch.object(F, "scaled_dot_product_attention", attention))
        for name in ("group_norm", "layer_norm", "rms_norm"):
            exchanged.enter_context(patch.object(F, name, in_full(getattr(F, name))))
        yield


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@contextmanager
def simulation() -> Iterator[Counter]:
    """Within the context, new tensors have no content and cost no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True), _as_on_gpu(), Counter() as counter:
        yield counter


def without_content(module: nn.Module, *, hooks: bool = True) -> Any:
    """Copy a module from any device (also `meta`), with weights without content. Call it in :func:`simulation`.

    Args:
        module: the module to copy.
        hooks: whether to also copy the hooks of its parts, and the objects that they hold.
    """
    memo: dict[int, Any] = {}
    for part in () if hooks else module.modules():
        for name in _HOOKS:
            memo[id(getattr(part, name))] = OrderedDict()
    for weight in module.parameters():
        memo[id(weight)] = nn.Parameter(
            torch.empty(weight.shape, dtype=weight.dtype), requires_grad=weight.requires_grad
        )
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
    made = copy.deepcopy(module, memo)
    for part in made.modules():
        # Compiled parts run uncompiled, because a compiler needs values, and fuses the counted tensors.
        part._compiled_call_impl = None
    return made


def empty_like(value: Any, *, batch: int | None = None, rows: int = 1) -> Any:
    """Return nested tensors without content. Call it within :func:`simulation`.

    Args:
        value: tensors in lists, tuples and dictionaries.
        batch: the new size of a first dimension of `rows`.
        rows: the number of rows in the given values.
    """

    def emptied(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        if batch is not None and shape and shape[0] == rows:
            shape[0] = batch
        return torch.empty(shape, dtype=tensor.dtype)

    return tree_map_only(Tensor, emptied, value)


def peak_of(counter: Counter, run: Callable[[], Any]) -> int:
    """Return the largest memory of `run` in bytes, beyond what was alive before."""
    counter.restart()
    before = counter.now
    run()
    return counter.peak - before
