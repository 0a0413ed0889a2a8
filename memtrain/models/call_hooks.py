"""Hooks around the calls of a denoiser that are never compiled.

A module that was compiled in place (`denoiser.compile()`) runs its own hooks inside the compiled region, and ignores
new ones after tracing. For such a module, these hooks stand around the compiled call. For others they are the module's
own hooks. In both cases they run in the order in which they were attached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

from torch import nn

Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]] | None]
"""A function of the module and the arguments of a call, which returns other arguments, or None to keep them."""

After = Callable[[nn.Module, tuple[Any, ...], Any], None]
"""A function of the module, the positional arguments and the result, which is None after an exception."""


class _CompiledCall:
    """A stand-in for the compiled call of a module."""

    def __init__(self, host: nn.Module, compiled: Callable[..., Any]) -> None:
        self.host, self.compiled = host, compiled
        self.before: list[Before] = []
        self.after: list[After] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = None
        try:
            for before in tuple(self.before):
                args, kwargs = before(self.host, args, kwargs) or (args, kwargs)
            result = self.compiled(*args, **kwargs)
        finally:
            for after in tuple(self.after):
                after(self.host, args, result)
        return result


def hook_calls(host: nn.Module, before: Before, after: After | None = None) -> Callable[[], None]:
    """Put hooks around every call of `host`.

    Args:
        host: the called module, wrapped or not.
        before: the function that is called first.
        after: the function that is called last, even if the call raises.

    Returns:
        A function that removes the hooks again.
    """
    compiled: Any = getattr(host, "_compiled_call_impl", None)
    if compiled is None:
        # A copy of the module, such as an average of its weights, has the hooks too, but is not watched.
        watched = ref(host)

        def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return before(module, args, kwargs) if module is watched() else None

        def left(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            if after is not None and module is watched():
                after(module, args, result)

        handles: list[Any] = [host.register_forward_pre_hook(entered, with_kwargs=True)]
        if after is not None:
            handles.append(host.register_forward_hook(left, always_call=True))

        def remove_handles() -> None:
            for handle in handles:
                handle.remove()

        return remove_handles
    call = compiled if isinstance(compiled, _CompiledCall) else _CompiledCall(host, compiled)
    call.before.append(before)
    if after is not None:
        call.after.append(after)
    host._compiled_call_impl = call

    def remove() -> None:
        call.before.remove(before)
        if after is not None:
            call.after.remove(after)
        if not call.before and not call.after:
            host._compiled_call_impl = call.compiled

    return remove
