"""Training steps that train nothing, on one process or two, and with several optimizers; what counts as a visit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ProbeError
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from tests.callbacks.test_monitor import Foreign, batches, fit

pytestmark = pytest.mark.filterwarnings("ignore:.*returned `None`")


class LeavesOut(Foreign):
    """Leaves out every third batch: after its forward pass, as for a loss that is not finite, or before."""

    def __init__(self, unet: Any, *, before: bool = False, manual: bool = False, every: int = 3) -> None:
        super().__init__(unet)
        self.before, self.every, self.automatic_optimization = before, every, not manual
        self.steps = 0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        self.steps += 1
        out = batch_idx % self.every == self.every - 1
        if out and self.before:
            return None
        loss = super().training_step(batch, batch_idx)
        if out:
            return None
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None


class Counts(MitigationCallback):
    """Counts the batches that it is told of, and weights nothing."""

    def __init__(self) -> None:
        self.prepared, self.weighed, self.done = list[int](), 0, 0

    def prepare(self, batch: dict[str, Any], flags: Flags, *, tokenizer: Any, number: int) -> None:
        self.prepared.append(number)

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        self.weighed += 1
        return super().weights(observation, flags)

    def batch_done(self) -> None:
        self.done += 1


def monitor(**options: Any) -> MemorizationMonitor:
    return MemorizationMonitor(reference=False, settings=WatchSettings(calibrate_every=2), **options)


@pytest.mark.parametrize("before", [False, True], ids=["after the forward", "before it"])
@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_a_step_that_returns_none_is_no_visit(
    pipeline: StableDiffusionPipeline, tmp_path: Path, before: bool, manual: bool
) -> None:
    counts, module = Counts(), LeavesOut(pipeline.unet, before=before, manual=manual)
    fit(module, tmp_path, [monitor(), counts])
    assert module.steps == 8
    assert (counts.prepared, counts.weighed, counts.done) == (list(range(8)), 6, 8)
    rows = read_steps(tmp_path / "records").to_pylist()
    assert sorted({row["batch"] for row in rows}) == [0, 1, 3, 4, 5, 7]
    assert [row["step"] for row in rows[::4]] == ([0, 1, 2, 3, 4, 5] if manual else [0, 1, 3, 4, 5, 7])


def run(module: Foreign, folder: Path, *, steps: int, resume: bool = False) -> MemorizationMonitor:
    watching = monitor()
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[watching, ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=1)],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=steps,
    )
    trainer.fit(module, batches(), ckpt_path="last" if resume else None)
    return watching


def test_a_resumed_run_counts_on(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    whole, resumed = LeavesOut(pipeline.unet), LeavesOut(pipeline.unet)
    first = run(whole, tmp_path / "whole", steps=8)
    run(resumed, tmp_path / "cut", steps=4)
    second = run(resumed, tmp_path / "cut", steps=8, resume=True)
    assert first.engine.batches_done == second.engine.batches_done
    tables = [read_steps(tmp_path / name / "records").to_pylist() for name in ("whole", "cut")]
    assert [repr(row) for row in tables[0]] == [repr(row) for row in tables[1]]


DISTRIBUTED = """
import sys
from tests.callbacks.test_steps_left_out import *
from diffusers import UNet2DConditionModel

def main():
    module = LeavesOut(UNet2DConditionModel.from_pretrained(sys.argv[2], subfolder="unet"), manual=True, before=True)
    counts = Counts()
    fit(module, Path(sys.argv[1]), [monitor(), counts], devices=2, strategy="ddp", max_epochs=2, data=batches(32))
    assert counts.done == module.steps == 8, (counts.done, module.steps)

main()
"""


@pytest.mark.slow
def test_the_same_on_two_processes(pipeline_folder: Path, tmp_path: Path) -> None:
    script, root = tmp_path / "distributed.py", Path(__file__).parents[2]
    script.write_text(DISTRIBUTED)
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), str(pipeline_folder)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    table = read_steps(tmp_path / "records")
    assert sorted(table["batch"].to_pylist()) == [number for number in (0, 1, 3, 4, 5, 7) for _ in range(8)]


def test_a_run_that_trains_nothing_says_so(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="No batch was trained on: training_step skipped all 4"):
        fit(LeavesOut(pipeline.unet, every=1), tmp_path / "short", [monitor()], max_epochs=1)
    with pytest.raises(ProbeError, match="saw no forward pass"):
        fit(LeavesOut(pipeline.unet, every=1, before=True), tmp_path / "long", [monitor()], max_epochs=3)


def test_a_denoiser_that_is_never_seen_is_no_step_left_out(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    """A loss is differentiated, so the first batch already has to show the denoiser."""

    class Elsewhere(Foreign):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            return next(self.unet.parameters()).square().sum()

    with pytest.raises(ProbeError, match="saw no forward pass"):
        fit(Elsewhere(pipeline.unet), tmp_path, [monitor()], max_epochs=1)


class Adversarial(Foreign):
    """Two optimizers: a critic learns in every batch, before the denoiser, which learns in every second one."""

    def __init__(self, unet: Any) -> None:
        super().__init__(unet)
        self.critic, self.automatic_optimization = torch.nn.Linear(256, 1), False

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        critic, denoiser = self.optimizers()
        critic.zero_grad()
        self.manual_backward(self.critic(batch["latents"].flatten(1)).square().mean())
        critic.step()
        if batch_idx % 2:
            return
        denoiser.zero_grad()
        noise = torch.randn(batch["latents"].shape)
        timesteps = torch.randint(1000, (len(noise),))
        noisy = self.noise.add_noise(batch["latents"], noise, timesteps)
        prediction = self.unet(noisy, timesteps, batch["text"]).sample
        self.manual_backward(F.mse_loss(prediction, noise))
        denoiser.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=1e-2) for part in (self.critic, self.unet)]

    def on_after_backward(self) -> None:
        """Nothing."""


class Penalty(MitigationCallback):
    """Adds a penalty, and counts how often."""

    added = 0

    def penalty(self, observation: Observation, flags: Flags) -> Tensor:
        self.added += 1
        assert len(observation.timesteps) == 4, "the denoiser has run"
        return torch.zeros(4)


def test_several_optimizers_and_batches_without_the_denoiser(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    penalty = Penalty()
    fit(Adversarial(pipeline.unet), tmp_path, [monitor(), penalty])
    batches_seen = sorted(set(read_steps(tmp_path / "records")["batch"].to_pylist()))
    assert batches_seen == [0, 2, 4, 6]
    assert penalty.added == 4


def test_a_penalty_that_nobody_could_add_is_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    class ByHand(LeavesOut):
        def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            loss.backward()

    with pytest.raises(Exception, match="The penalty of Penalty was not added"):
        fit(ByHand(pipeline.unet, manual=True), tmp_path, [monitor(), Penalty()])
