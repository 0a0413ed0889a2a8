"""Engines that run pieces of work: `local`, in this process, or `ray`, on the processors of this machine or a cluster.

A piece is a function of a module. It is called with values that all pieces share and with one value of its own. The
result does not depend on the engine: pieces are cut in the same way everywhere and draw nothing from a common
generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from memtrain.errors import ConfigurationError

LOCAL, RAY = "local", "ray"


class Engine(Protocol):
    """Runs pieces of work."""

    def share(self, value: Any) -> Any:
        """Return a stand-in for a value in `shared` of :meth:`map`, so that it is sent only once."""

    def tasks(self, *, gpu: bool = False) -> int:
        """Return the number of pieces that run at the same time.

        Args:
            gpu: whether each piece takes a GPU, if there are any.
        """

    def map(
        self, function: Callable[..., Any], items: Iterable[Any], *, shared: Sequence[Any] = (), gpu: bool = False
    ) -> Iterator[Any]:
        """Yield `function(*shared, item)` for each item, in their order.

        Args:
            function: a function of a module, so that other processes find it.
            items: the items, one for each piece of work.
            shared: values, or the stand-ins of :meth:`share` for them.
            gpu: whether each piece takes a GPU, if there are any.
        """


class LocalEngine:
    """Runs one piece after the other in this process."""

    def share(self, value: Any) -> Any:
        """Return the value itself."""
        return value

    def tasks(self, *, gpu: bool = False) -> int:
        """Return 1."""
        return 1

    def map(
        self, function: Callable[..., Any], items: Iterable[Any], *, shared: Sequence[Any] = (), gpu: bool = False
    ) -> Iterator[Any]:
        """Yield the results one by one; see :class:`Engine`."""
        for item in items:
            yield function(*shared, item)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The engine for pieces of work.

    Args:
        engine: the engine. `local` works in this process. `ray` (extra `ray`) runs a piece of work on each processor.
        engine_address: the address of a Ray cluster, such as `auto` on one of its machines or `ray://head:10001`; by
            default a Ray of its own on this machine. All machines need this version of memtrain and the same files
            under the same paths.
        engine_tasks: the number of pieces of work at a time on Ray; by default the number of its processors.
    """

    engine: Literal["local", "ray"] = "local"
    engine_address: str | None = None
    engine_tasks: int | None = None

    def __post_init__(self) -> None:
        if self.engine_tasks is not None and self.engine_tasks < 1:
            raise ConfigurationError(
                f"engine_tasks={self.engine_tasks}", expected="at least 1", remedy="correct --engine_tasks"
            )
        if self.engine == LOCAL and (self.engine_address, self.engine_tasks) != (None, None):
            raise ConfigurationError(
                "engine_address and engine_tasks belong to Ray, but engine is local",
                expected="engine ray, or neither of both options",
                remedy="add --engine ray",
            )


@contextmanager
def opened(options: EngineOptions) -> Iterator[Engine]:
    """Open the engine for the time of the context.

    Raises:
        ConfigurationError: if Ray is not installed or cannot be reached.
    """
    if options.engine == LOCAL:
        yield LocalEngine()
        return
    # Imported here, because Ray is heavy and an extra.
    from memtrain.engines.ray_engine import on_ray

    with on_ray(options.engine_address, options.engine_tasks) as engine:
        yield engine
