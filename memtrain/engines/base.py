"""What runs pieces of work: `local`, in this process, or `ray`, on the processors of this machine or of a cluster.

A piece is a function of a module, called with values that all pieces share and with one of its own. What comes out does
not depend on the engine: pieces are cut in the same way everywhere and draw nothing from a common generator.
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
        """What stands for a value in `shared` of :meth:`map`, so that it is sent out once, however often it is used."""

    def tasks(self, *, gpu: bool = False) -> int:
        """Pieces that run at the same time.

        Args:
            gpu: if each takes a GPU, where there are any.
        """

    def map(
        self, function: Callable[..., Any], items: Iterable[Any], *, shared: Sequence[Any] = (), gpu: bool = False
    ) -> Iterator[Any]:
        """`function(*shared, item)` of each item, in their order.

        Args:
            function: of a module, so that other processes find it.
            items: a piece of work each.
            shared: values, or what :meth:`share` gave for them.
            gpu: whether each piece takes a GPU, where there are any.
        """


class LocalEngine:
    """One piece after the other, in this process."""

    def share(self, value: Any) -> Any:
        """The value itself."""
        return value

    def tasks(self, *, gpu: bool = False) -> int:
        """One."""
        return 1

    def map(
        self, function: Callable[..., Any], items: Iterable[Any], *, shared: Sequence[Any] = (), gpu: bool = False
    ) -> Iterator[Any]:
        """See :class:`Engine`."""
        for item in items:
            yield function(*shared, item)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which engine.

    Args:
        engine: `local`: in this process. `ray`: on Ray (extra `ray`), a piece of work on each processor.
        engine_address: of a Ray cluster, such as `auto` on one of its machines or `ray://head:10001`; default a Ray of
            its own on this machine. All machines need memtrain in this version and the same files under the same paths.
        engine_tasks: pieces of work at a time on Ray; default as many as it has processors.
    """

    engine: Literal["local", "ray"] = "local"
    engine_address: str | None = None
    engine_tasks: int | None = None

    def __post_init__(self) -> None:
        if self.engine_tasks is not None and self.engine_tasks < 1:
            raise ConfigurationError(f"engine_tasks={self.engine_tasks}", expected="at least 1", remedy="change it")
        if self.engine == LOCAL and (self.engine_address, self.engine_tasks) != (None, None):
            raise ConfigurationError(
                "engine_address and engine_tasks belong to Ray, and engine is local",
                expected="both left out, or engine ray",
                remedy="add --engine ray",
            )


@contextmanager
def opened(options: EngineOptions) -> Iterator[Engine]:
    """The engine, as long as the context lasts.

    Raises:
        ConfigurationError: if Ray is not installed or not to be reached.
    """
    if options.engine == LOCAL:
        yield LocalEngine()
        return
    # Imported here, because it is heavy and an extra.
    from memtrain.engines.ray_engine import on_ray

    with on_ray(options.engine_address, options.engine_tasks) as engine:
        yield engine
