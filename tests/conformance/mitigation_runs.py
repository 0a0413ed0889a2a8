"""Short runs with every mitigation in turn, on one process or several, for the tests to compare.

Timesteps and noise are a function of batch number and key, so a batch means the same however many processes share it.
The global batches come in fixed order. Half of the samples count as flagged from the third batch on, whatever the
monitor says, so that every mitigation has something to act on.
"""

from __future__ import annotations

import copy
import functools
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import Sampler

import memtrain.callbacks
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.module import TextImageDataModule
from memtrain.data.sampler import ResumableLoader
from memtrain.evidence.flags import Flags
from memtrain.functional.keyed_draws import normal, seed_of, uniform
from memtrain.models.observation import Observation
from memtrain.monitoring.mitigation import Mitigation
from memtrain.monitoring.options import WatchSettings
from memtrain.training.text_to_image import TextToImageModule
from tests.conftest import LETTERS, ROOT, encoded_image

GLOBAL_BATCH, STEPS, CUT, SAVE_EVERY, FLAGGED_FROM = 8, 6, 4, 3, 2
"""Two batches are an epoch, so the checkpoint of step 3 lies within one, and a step is lost at the cut."""

KEYS = [f"image_{index:02}.png" for index in range(24)]

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "AttentionRegularization": [{"strength": 100.0, "margin": 0.0}],
    "CaptionAugmentation": [
        {"kind": "replace", "probability": 0.5},
        {"kind": "multiple", "samples": "flagged"},
        {"kind": "noise", "strength": 1.0},
    ],
    "EntropySkipping": [{"share": 0.4}],
    "GuidanceNormSkipping": [{"threshold": 0.7}],
    "LossSkipping": [{"ratio": 1.0}],
}
"""By class, what differs from its overlay so that it acts within a few steps, one entry per run; none: one as it is."""


def _subclasses(kind: type[Mitigation]) -> Iterator[type[Mitigation]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def mitigations() -> list[type[Mitigation]]:
    """Every mitigation of the package."""
    for entry in pkgutil.iter_modules(memtrain.callbacks.__path__):
        importlib.import_module(f"memtrain.callbacks.{entry.name}")
    named = [kind for kind in _subclasses(Mitigation) if kind.__module__.startswith("memtrain.")]
    return [kind for kind in named if kind.__module__ != "memtrain.callbacks.mitigation"]


def overlay(kind: type[Mitigation]) -> Path:
    """The configuration that adds it to a run."""
    return ROOT / "configs" / "callbacks" / f"{kind.__module__.rsplit('.', 1)[1]}.yaml"


@dataclass(frozen=True)
class Case:
    """One mitigation with arguments; None for a run without any."""

    name: str
    kind: type[Mitigation] | None
    arguments: dict[str, Any]

    def build(self) -> Mitigation | None:
        """A new one."""
        return self.kind(**self.arguments) if self.kind is not None else None

    @property
    def needs_reference(self) -> bool:
        """Whether the monitor has to measure the base model."""
        return self.kind is not None and bool(self.kind(**self.arguments).needs().base_profile)


def cases() -> list[Case]:
    """All of them, the one without a mitigation first."""
    found = [Case("none", None, {})]
    for kind in mitigations():
        (callback,) = yaml.safe_load(overlay(kind).read_text(encoding="utf-8"))["trainer"]["callbacks+"]
        for settings in SETTINGS.get(kind.__name__, [{}]):
            name = "-".join([kind.__name__, *(str(settings[key]) for key in ("kind", "samples") if key in settings)])
            found.append(Case(name, kind, {**callback.get("init_args", {}), **settings}))
    return found


def write_images(folder: Path) -> Path:
    """24 captioned images, of which 8 are held out."""
    folder.mkdir(parents=True)
    rows = []
    for index in range(len(KEYS)):
        name = KEYS[index]
        (folder / name).write_bytes(encoded_image(index, size=(16, 16)))
        rows.append(json.dumps({"file_name": name, "text": f"{LETTERS[index]} {LETTERS[index + 1]} c"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


class Host(TextToImageModule):
    """Plain fine-tuning whose randomness knows nothing of processes."""

    def __init__(self, pretrained: str) -> None:
        super().__init__(pretrained, ema_decay=None, seed=0)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # type: ignore[override]
        seeds = [seed_of(self.trainer.fit_loop.total_batch_idx, key) for key in batch["key"]]
        noise = normal(seeds, batch["latents"].shape[1:], device=self.device)
        timesteps = 100 + 90 * (2 * uniform(seeds, 1)[:, 0]).long()
        noisy = self.scheduler.add_noise(batch["latents"], noise, timesteps)
        prediction = self.denoiser(noisy, timesteps, self.encode_text(batch["input_ids"])).sample
        return torch.nn.functional.mse_loss(prediction, noise)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@functools.cache
def _host(pretrained: str) -> Host:
    return Host(pretrained)


class _FixedOrder(Sampler[int]):
    """This process's share of global batches in the order of the data set: the first half of each, or the second."""

    def __init__(self, data: FixedData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.train_dataset) // GLOBAL_BATCH * self.data.batch_size  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        size, rank = self.data.batch_size, self.data.trainer.global_rank  # type: ignore[union-attr]
        for batch in range(self.data._place()[1] // size, len(self) // size):
            first = batch * GLOBAL_BATCH + rank * size
            yield from range(first, first + size)


class FixedData(TextImageDataModule):
    """Global batches of fixed content, dealt out in the order of ranks."""

    def train_dataloader(self) -> Any:
        return ResumableLoader(self.train_dataset, batch_size=self.batch_size, sampler=_FixedOrder(self))

    def alternatives(self) -> dict[str, tuple[str, ...]]:
        return {sample.key: ("x y z", "q") for sample in self.train_dataset.samples}  # type: ignore[union-attr]


def force_flags(mitigation: Mitigation) -> None:
    """Let a mitigation see half of the samples as flagged from the third batch on."""
    prepare, weights, penalty = mitigation.prepare, mitigation.weights, mitigation.penalty
    number = 0

    def forced(keys: Sequence[str], flags: Flags) -> Flags:
        chosen = [seed_of(key) % 2 == 0 and number >= FLAGGED_FROM for key in keys]
        flagged = torch.tensor(chosen, device=flags.score.device)
        everyone = [key for key in KEYS if seed_of(key) % 2 == 0] if number >= FLAGGED_FROM else []
        score = torch.where(flagged, 0.8, 0.2)
        # The visits stay those that the monitor has counted.
        return Flags(flagged, flagged, score, 1.0, list(keys), everyone, flags.visits)

    def forced_prepare(batch: dict[str, Any], flags: Flags, **options: Any) -> None:
        nonlocal number
        number = options["number"]
        prepare(batch, forced(batch["key"], flags), **options)

    def forced_penalty(seen: Observation, flags: Flags) -> Tensor | None:
        # Held-out samples are dealt out to the processes, which see other noise then.
        for name in mitigation.needs().base_profile:
            seen.level[name], seen.spread[name] = torch.zeros_like(seen.level[name]), torch.ones_like(seen.spread[name])
        return penalty(seen, forced(seen.keys, flags))

    mitigation.prepare = forced_prepare  # type: ignore[method-assign, assignment]
    mitigation.weights = lambda seen, flags: weights(seen, forced(seen.keys, flags))  # type: ignore[method-assign]
    mitigation.penalty = forced_penalty  # type: ignore[method-assign]


def fit(
    module: TextToImageModule, folder: Path, callbacks: Sequence[Any], *, stop: int, resume: bool, processes: int
) -> None:
    """Train a module on the images beside `folder`, with checkpoints; arguments as of :func:`run`."""
    data = FixedData(
        str(folder.parent / "images"),
        resolution=16,
        batch_size=GLOBAL_BATCH // processes,
        heldout_fraction=0.34,
        cache_latents=True,
    )
    checkpoints = ModelCheckpoint(folder / "checkpoints", save_last=True, save_top_k=0, every_n_train_steps=SAVE_EVERY)
    distributed = DDPStrategy(cluster_environment=LightningEnvironment(), process_group_backend="gloo")
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=stop,
        accelerator="cpu",
        devices=processes,
        strategy=distributed if processes > 1 else "auto",
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[*callbacks, checkpoints],
    )
    trainer.fit(module, data, ckpt_path="last" if resume else None)


def run(
    case: Case, folder: Path, *, pretrained: Path, stop: int = STEPS, resume: bool = False, processes: int = 1
) -> dict[str, Tensor]:
    """Train, and return the weights.

    Args:
        case: what is trained with.
        folder: of this run; beside it lie the images and the reference profile.
        pretrained: the base model.
        stop: optimizer steps.
        resume: go on from the last checkpoint in `folder`.
        processes: that share a global batch; more than one have to be started already.
    """
    mitigation = case.build()
    if mitigation is not None:
        force_flags(mitigation)
    monitor = MemorizationMonitor(
        minimum_visits=2,
        reference=case.needs_reference,
        reference_folder=str(folder.parent / "profiles"),
        settings=WatchSettings(reference_timesteps=(200, 600), reference_draws=1, calibrate_every=2, heldout_batch=4),
    )
    module = copy.deepcopy(_host(str(pretrained)))
    callbacks = [monitor, *([mitigation] if mitigation is not None else [])]
    fit(module, folder, callbacks, stop=stop, resume=resume, processes=processes)
    return {name: value.detach().clone() for name, value in module.denoiser.state_dict().items()}


def main() -> None:
    """Run every case as one of two processes, and leave the weights in the folder."""
    folder, pretrained = Path(sys.argv[1]), Path(sys.argv[2])
    for case in cases():
        weights = run(case, folder / f"two-{case.name}", pretrained=pretrained, processes=2)
        torch.save(weights, folder / f"two-{case.name}" / f"weights-{os.environ['LOCAL_RANK']}.pt")


if __name__ == "__main__":
    main()
