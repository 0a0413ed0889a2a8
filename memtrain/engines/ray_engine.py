"""Pieces of work on Ray, on this machine's processors or on those of a cluster (extra `ray`).

Ray places pieces on machines, sends shared values once to each machine, and starts a piece again when its process dies.
Each piece has one processor and one thread. The machines of a cluster trust each other: everybody who can connect to a
cluster can run code on it (docs/threat_model.md).
Cost: a few seconds to start a Ray of its own.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import memtrain
from memtrain.errors import ConfigurationError, ResourceError

AHEAD = 2
"""The number of pieces that are handed out for each one that can run, so that no processor waits."""
REMEMBERED = 4
"""The number of shared values that are recognized."""
AGAIN = 3
"""The number of times that a piece is started again after its process died."""


class RayEngine:
    """Runs pieces of work on a connected Ray.

    Args:
        ray: the package.
        tasks: the number of pieces at a time; by default the number of processors.
    """

    def __init__(self, ray: Any, tasks: int | None) -> None:
        self.ray, self._tasks = ray, tasks
        self._sent: deque[tuple[Any, Any]] = deque(maxlen=REMEMBERED)
        self._place = self.share((memtrain.__version__, os.getcwd()))

    def share(self, value: Any) -> Any:
        """Put the value into Ray's store, and return a reference to it."""
        known = next((reference for one, reference in self._sent if one is value), None)
        if known is None:
            known = self.ray.put(value)
            self._sent.append((value, known))
        return known

    def tasks(self, *, gpu: bool = False) -> int:
        """Return the number of pieces at a time; see :class:`memtrain.engines.base.Engine`."""
        there = self.ray.cluster_resources()
        return self._tasks or max(1, int((gpu and there.get("GPU")) or there.get("CPU", 1)))

    def map(
        self, function: Callable[..., Any], items: Iterable[Any], *, shared: Sequence[Any] = (), gpu: bool = False
    ) -> Iterator[Any]:
        """Yield the results in their order; see :class:`memtrain.engines.base.Engine`.

        Raises:
            ResourceError: if the process of a piece died again and again.
        """
        takes_gpu = gpu and self.ray.cluster_resources().get("GPU", 0) >= 1
        run = self.ray.remote(num_cpus=1, num_gpus=int(takes_gpu), max_retries=AGAIN)(_piece)
        sent = [one if isinstance(one, self.ray.ObjectRef) else self.share(one) for one in shared]
        waiting: deque[Any] = deque()
        left = iter(items)
        most = self.tasks(gpu=gpu) * AHEAD
        try:
            while True:
                while len(waiting) < most and (item := next(left, _NO_MORE)) is not _NO_MORE:
                    waiting.append(run.remote(self._place, function, item, *sent))
                if not waiting:
                    return
                yield self._result(waiting.popleft())
        finally:
            for one in waiting:
                self.ray.cancel(one, force=True)

    def _result(self, reference: Any) -> Any:
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except errors.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, Exception) else error from error
        except errors.RayError as error:
            raise ResourceError(
                f"A piece of work ended on Ray, {AGAIN + 1} times: {str(error).splitlines()[0]:.200}",
                expected="processes that live until their work is done",
                remedy="check the memory of the machines, or run fewer pieces at a time (--engine_tasks 1); finished "
                "pieces are "
                "kept, and the same command goes on",
            ) from error


_NO_MORE = object()


def _piece(place: tuple[str, str], function: Callable[..., Any], item: Any, *shared: Any) -> Any:
    """Run one piece of work in a process of Ray's."""
    import torch

    version, folder = place
    if version != memtrain.__version__:
        raise ConfigurationError(
            f"{socket.gethostname()} has memtrain {memtrain.__version__}, but the work comes from version {version}",
            expected="one version on all machines",
            remedy="install the same version on all machines",
        )
    if not Path(folder).is_dir():
        raise ConfigurationError(
            f"{socket.gethostname()} has no folder {folder}",
            expected="a file system that all machines share, under the same paths",
            remedy="run the command in a folder that all machines have",
        )
    os.chdir(folder)
    torch.set_num_threads(1)
    return function(*shared, item)


@contextmanager
def on_ray(address: str | None, tasks: int | None) -> Iterator[RayEngine]:
    """Connect to Ray.

    Args:
        address: the address of a cluster; None starts a Ray of its own on this machine, which ends with the context.
        tasks: the number of pieces at a time.

    Raises:
        ConfigurationError: if Ray is not installed, or if the cluster cannot be reached.
    """
    ray = _imported()
    if ray.is_initialized():  # by the user's program
        yield RayEngine(ray, tasks)
        return
    # Ray sends no usage reports, and only this machine reaches a Ray of its own.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own: dict[str, Any] = {"num_cpus": tasks, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    given = own if address is None else {"address": address}
    _require_somebody(address)
    try:
        ray.init(**given, logging_level="error", log_to_driver=False, configure_logging=False)
    except Exception as error:  # from Ray, gRPC and sockets
        raise ConfigurationError(
            f"Ray{f' at {address!r}' if address else ''} cannot be reached: {str(error).splitlines()[0]:.300}",
            expected="a running cluster, or room for a Ray on this machine",
            remedy="check --engine_address, or start a cluster (ray start --head)",
        ) from error
    try:
        yield RayEngine(ray, tasks)
    finally:
        ray.shutdown()


def _require_somebody(address: str | None) -> None:
    """Refuse an address that does not answer, before Ray tries it for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConfigurationError(
                f"Nothing answers at {address}: {error}",
                expected="the head of a running Ray cluster",
                remedy="check --engine_address, or start a cluster (ray start --head)",
            ) from error


def _imported() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigurationError(
            f"Ray cannot be imported: {error}",
            expected="the extra `ray`",
            remedy="pip install 'memtrain[ray]' (or pip install ray), or remove --engine",
        ) from error
