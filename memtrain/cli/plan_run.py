"""A training run that is set up, and not run: trainer, module and data, and what each says of itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.known_families import AUTO, OFF
from memtrain.errors import MemtrainError
from memtrain.families.scan_cache import fingerprint
from memtrain.families.scan_result import read_scan
from memtrain.monitoring.data_protocol import by_key
from memtrain.monitoring.host import Host, Plan
from memtrain.monitoring.planned_visits import TIMESTEPS, expected_visits


@dataclass
class PlannedRun:
    """The parts of a planned run.

    Attributes:
        trainer: the trainer with its callbacks.
        module: the module that is trained.
        data: the data, built, with nothing encoded.
        batches: per epoch and process.
        caches: what was asked to be cached: `latents in memory`, or a cache of the data module.
        scanned: whether pictures are known; None where they are not to be counted.
        problems: what would end the run.
        warnings: what a user should know.
    """

    trainer: Trainer
    module: Any
    data: Any
    batches: int = 0
    caches: dict[str, Any] = field(default_factory=dict)
    scanned: bool | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Keep what is refused within as a problem, and go on."""
        try:
            yield
        except MemtrainError as error:
            self.problems.append(f"{type(error).__name__}: {error}")

    @property
    def callbacks(self) -> list[Any]:
        """The callbacks of the trainer."""
        return list(self.trainer.callbacks)  # type: ignore[attr-defined]

    @property
    def monitor(self) -> MemorizationMonitor | None:
        """The first monitor."""
        return next((one for one in self.callbacks if isinstance(one, MemorizationMonitor)), None)

    @property
    def plan(self) -> Plan:
        """How long the run is."""
        limit = self.trainer.limit_train_batches
        per_epoch = min(self.batches, limit) if isinstance(limit, int) else int(self.batches * limit)
        return Plan(
            max_steps=self.trainer.max_steps,
            max_epochs=self.trainer.max_epochs,
            batches_per_epoch=per_epoch,
            accumulate=self.trainer.accumulate_grad_batches,
            batches_of_data=self.batches,
        )

    @property
    def host(self) -> Host:
        """The surroundings, as far as they are known before training."""
        return PlannedHost(self)

    @property
    def steps(self) -> int | None:
        """Optimizer steps; None without an end."""
        plan = self.plan
        limits = [plan.max_steps] if plan.max_steps >= 0 else []
        if plan.max_epochs is not None and plan.max_epochs >= 0:
            limits.append(plan.max_epochs * math.ceil(plan.batches_per_epoch / plan.accumulate))
        return min(limits, default=None)

    def picture_visits(self) -> Mapping[str, int]:
        """Visits of each training picture in an epoch, without canaries."""
        groups, families, visits = by_key(self.data, "groups"), self.host.families, Counter[str]()
        for key, count in by_key(self.data, "visits_per_epoch").items():
            if groups.get(key) != "canary":
                visits[key if families is None else families.picture(key)] += count
        return visits

    def counted_share(self) -> float:
        """Share of visits that count as evidence."""
        if self.monitor is None:
            return 1.0
        options = self.monitor.options
        share = min(1.0, options.settings.maximum_timestep / TIMESTEPS)
        share *= 1 - float(getattr(self.data, "caption_dropout", 0.0))
        return share / (options.paired_every if options.reference == "paired" else 1)

    def visits(self, each_epoch: int = 1, *, counted: bool = False) -> float | None:
        """Visits of a picture over the run; None without an end."""
        share = self.counted_share() if counted else 1.0
        return expected_visits(self.plan, visits_per_epoch=each_epoch, counted_share=share)


class PlannedHost(Host):
    """The surroundings of a run that has not begun."""

    def __init__(self, run: PlannedRun) -> None:
        super().__init__(run.module, data=run.data, folder=run.trainer.default_root_dir)
        self._run = run

    @property
    def plan(self) -> Plan:
        """The plan of the run."""
        return self._run.plan


def set_up(trainer: Trainer, module: Any, data: Any) -> PlannedRun:
    """Bring trainer, module and data together as `fit` does, without encoding, measuring or training anything.

    Problems are kept, and do not end it.
    """
    run = PlannedRun(trainer, module, data)
    connector: Any = trainer._data_connector
    connector.attach_data(module, datamodule=data)
    trainer.strategy._lightning_module = module
    with run.checking():
        module.setup("fit")
    with run.checking():
        _build(run)
    for callback in run.callbacks:
        if type(callback).__module__.startswith("memtrain."):
            with run.checking():
                callback.setup(trainer, module, "fit")
    return run


def _build(run: PlannedRun) -> None:
    """Build the data, with the pictures that an earlier scan found, and without caches, which are only noted."""
    data = run.data
    if getattr(data, "cache_latents", False):
        run.caches["latents in memory"] = True
        data.cache_latents = False
    if getattr(data, "cache", None) is not None:
        run.caches["on disk"] = data.cache
        data.cache = None
    if getattr(data, "families_setting", None) == AUTO and not _has_scan(data):
        data.families_setting, run.scanned = OFF, False
    elif getattr(data, "families_setting", OFF) != OFF:
        run.scanned = True
    data.setup("fit")
    try:
        run.batches = len(data.train_dataloader())
    except TypeError:
        run.warnings.append("The data do not say how many they are, so neither steps nor visits are known here")


def _has_scan(data: Any) -> bool:
    """Whether a scan of these data is in the cache; looks at no image."""
    folder: Path | None = data._families_folder()
    if folder is None or not folder.is_dir():
        return False
    name = fingerprint(data._open(data.path), data.scan, folder)
    return name is not None and read_scan(folder / name) is not None
