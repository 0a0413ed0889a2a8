"""Parts of `gpu.py` that train: the default run, configs/sd15.yaml, and a step against a plain loop."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import yaml
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from experiment import ROOT, call, configuration, median_interval
from gpu_clock import peak_gib, synchronise
from gpu_shapes import Part, random_images, random_pipeline
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_replacement import SampleReplacement
from memtrain.data.module import TextImageDataModule
from memtrain.training.execution import Execution
from memtrain.training.pipelines.find import load_trainable
from memtrain.training.text_to_image import TextToImageModule


def _train(part: Part, config: str, changes: dict[str, dict[str, Any]], *, warmup: int) -> Path:
    """Train by command with a clock among the callbacks; the folder of the run. The clock's figures are kept.

    Args:
        part: keeps them.
        config: file that is trained by, with everything that is not changed.
        changes: the changes of `trainer`, and of the arguments of `model` and `data`.
        warmup: steps that are not timed.
    """
    name = Path(config).stem
    run, figures = part.folder / f"run_{name}", part.folder / f"{name}.clock.json"
    content = configuration(ROOT / config)
    content["trainer"] |= {"default_root_dir": str(run), "enable_progress_bar": False, **changes["trainer"]}
    content["trainer"]["accelerator"] = "cpu" if part.smoke else "gpu"
    content["trainer"]["devices"] = 1
    for group in ("model", "data"):
        content[group]["init_args"] |= changes.get(group, {})
    for callback in content["trainer"]["callbacks"]:
        if "reference_folder" in callback.get("init_args", {}):
            callback["init_args"]["reference_folder"] = str(part.folder / "profiles")
    clock = {"class_path": "gpu_clock.StepClock", "init_args": {"file": str(figures), "warmup": warmup}}
    content["trainer"]["callbacks"].append(clock)
    file = part.folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    start = time.perf_counter()
    call(["train.py", "fit", "--config", str(file), "--trust", "gpu_clock"])
    part.add(**json.loads(figures.read_text(encoding="utf-8")), seconds_of_command=time.perf_counter() - start)
    evidence = pq.read_table(run / "records" / "evidence.parquet").to_pylist()
    part.add(
        samples_with_evidence=len(evidence),
        flagged=sum(bool(row.get("flagged")) for row in evidence),
        files=sorted(path.name for path in run.iterdir()),
    )
    return run


def default_run(part: Part) -> None:
    """`configs/tiny.yaml`, cut short, and its evaluation."""
    changes: dict[str, dict[str, Any]] = {"trainer": {"max_steps": 4 if part.smoke else 100}}
    if part.smoke:
        duplicates = {"count": 2, "repeats": 8, "only_in": None}
        changes["data"] = {"path": str(random_images(part)), "duplicates": duplicates, "batch_size": 4}
        changes["model"] = {"pretrained": str(random_pipeline(part))}
    run = _train(part, "configs/tiny.yaml", changes, warmup=1 if part.smoke else 20)
    few = "1" if part.smoke else "4"
    options = {"max_prompts": few, "unique_prompts": few, "images_per_prompt": "2", "steps": few, "kid": "false"}
    start = time.perf_counter()
    call(
        ["evaluate.py", "--run", str(run), *(word for name, value in options.items() for word in (f"--{name}", value))]
    )
    results = json.loads((run / "evaluation" / "results.json").read_text(encoding="utf-8"))
    part.add(
        seconds_of_evaluation=time.perf_counter() - start,
        heldout_loss=results["quality"]["heldout_loss"],
        groups={name: group["n"] for name, group in results["replication"]["groups"].items()},
    )


def sd15(part: Part) -> None:
    """`configs/sd15.yaml` at its own shape with random weights, 50 steps."""
    changes: dict[str, dict[str, Any]] = {
        "trainer": {"max_steps": 3 if part.smoke else 50},
        "model": {"pretrained": str(random_pipeline(part))},
        "data": {"path": str(random_images(part))},
    }
    if part.smoke:
        changes["data"]["resolution"] = 64
    _train(part, "configs/sd15.yaml", changes, warmup=1 if part.smoke else 10)


class PlainLoop:
    """A training step as diffusers' examples write it: the same model, batches, precision and weight average.

    Args:
        part: gives the device.
        folder: the folder of the pipeline.
        batches: endless.
    """

    def __init__(self, part: Part, folder: Path, batches: Iterator[dict[str, Any]]) -> None:
        self.part, self.batches = part, batches
        parts = load_trainable(str(folder))
        self.scheduler = parts.scheduler
        self.unet = parts.denoiser.to(part.device, memory_format=torch.channels_last).train()
        self.unet.enable_gradient_checkpointing()
        self.text_encoder = parts.pipeline.text_encoder.requires_grad_(False).eval().to(part.device)
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=1e-5, weight_decay=1e-2)
        self.schedule = get_scheduler("constant_with_warmup", self.optimizer, num_warmup_steps=100)
        self.ema = EMAModel(self.unet.parameters(), decay=0.999, foreach=True)
        self.ema.to(part.device)

    def step(self) -> Tensor:
        """One step; its loss."""
        device = self.part.device
        batch = next(self.batches)
        latents = batch["latents"].to(device, non_blocking=True)
        ids = batch["input_ids"].to(device, non_blocking=True)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (len(latents),), device=device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        with self.part.autocast():
            prediction = self.unet(noisy, timesteps, self.text_encoder(ids)[0]).sample
        loss = self.loss(prediction.float(), noise, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.ema.step(self.unet.parameters())
        return loss.detach()

    def loss(self, prediction: Tensor, noise: Tensor, batch: dict[str, Any]) -> Tensor:
        """The mean of the squared errors."""
        return F.mse_loss(prediction, noise)


class InTurn(Callback):
    """Between blocks of Lightning's steps runs as many steps of a plain loop, and times both.

    Args:
        plain: the loop.
        block: steps at a time.
    """

    def __init__(self, plain: PlainLoop, block: int) -> None:
        self.plain, self.block = plain, block
        self.lightning: list[float] = []
        self.loop: list[float] = []
        self.losses: list[Tensor] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """At the border of two blocks the plain loop has its turn."""
        if trainer.global_step % self.block:
            return
        device = pl_module.device
        synchronise(device)
        now = time.perf_counter()
        # The first block warms up.
        if trainer.global_step > self.block:
            self.lightning.append((now - self._start) / self.block)
        for _ in range(self.block):
            self.losses.append(self.plain.step())
        synchronise(device)
        if trainer.global_step >= self.block:
            self.loop.append((time.perf_counter() - now) / self.block)
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss."""
        self.losses.append(outputs["loss"].detach())


def step(part: Part) -> None:
    """A step of TextToImageModule under Lightning, with and without monitor, against the plain loop, in turn."""
    folder, block, turns = random_pipeline(part), 1 if part.smoke else 4, 3 if part.smoke else 9
    for name in ("without_monitor", "with_monitor"):
        part.attempt(name, lambda name=name: _against_loop(part, folder, name, block=block, turns=turns))  # type: ignore[misc]


def _against_loop(part: Part, folder: Path, name: str, *, block: int, turns: int) -> dict[str, Any]:
    options = {"resolution": 64 if part.smoke else 512, "batch_size": 4, "cache_latents": True, "seed": 0}
    data = TextImageDataModule(str(random_images(part)), **options)  # type: ignore[arg-type]
    module = TextToImageModule(
        str(folder),
        warmup_steps=100,
        ema_decay=0.999,
        execution=Execution(gradient_checkpointing=True),
        learning_rate=1e-5,
    )

    def batches() -> Iterator[dict[str, Any]]:
        # Lightning's own loader keeps its place in the epoch; this one starts over.
        assert data.train_dataset is not None
        while True:
            yield from torch.utils.data.DataLoader(
                data.train_dataset,
                batch_size=4,
                shuffle=True,
                drop_last=True,
                pin_memory=part.device.type == "cuda",
            )

    if part.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    turn = InTurn(PlainLoop(part, folder, batches()), block)
    monitor = MemorizationMonitor(reference_folder=str(part.folder / "profiles"))
    watching: list[Callback] = [monitor, SampleReplacement()] if name == "with_monitor" else []
    trainer = Trainer(
        accelerator="cpu" if part.smoke else "gpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=block * turns,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        callbacks=[turn, *watching],
        default_root_dir=str(part.folder / f"step_{name}"),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    # One block of the loop comes before each of Lightning's that is timed.
    pairs = min(len(turn.lightning), len(turn.loop))
    ratios = [a / b for a, b in zip(turn.lightning[-pairs:], turn.loop[-pairs:], strict=True)]
    return {
        "seconds_per_step_lightning": statistics.median(turn.lightning),
        "seconds_per_step_loop": statistics.median(turn.loop),
        "ratio_median": statistics.median(ratios),
        "ratio_interval_95": median_interval(ratios),
        "blocks": len(ratios),
        "steps_per_block": block,
        "losses_finite": bool(torch.stack(turn.losses).isfinite().all()),
        "peak_gib_of_both": peak_gib(part.device),
    }
