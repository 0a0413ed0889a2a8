"""The monitor in a host of somebody else: exact re-weighting, records, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.errors import ConfigurationError, DataError
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps, read_table

WEIGHT = {"a": 1.0, "b": 0.0, "c": 0.5, "d": 2.0}


class Foreign(LightningModule):
    """A user's own module: one scalar mean-squared error, nothing of ours."""

    def __init__(self, unet: UNet2DConditionModel, *, by_hand: bool = False) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel.from_config(unet.config)
        self.unet.load_state_dict(unet.state_dict())
        self.noise = DDPMScheduler()
        self.by_hand = by_hand
        self.gradients: list[Tensor] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        generator = torch.Generator().manual_seed(batch_idx)
        noise = torch.randn(batch["latents"].shape, generator=generator)
        timesteps = torch.randint(1000, (len(noise),), generator=generator)
        noisy = self.noise.add_noise(batch["latents"], noise, timesteps)
        prediction = self.unet(noisy, timesteps, batch["text"]).sample
        if self.by_hand:
            weights = torch.tensor([WEIGHT[key] for key in batch["key"]])
            return (weights * (prediction - noise).square().flatten(1).mean(1)).mean()
        return F.mse_loss(prediction, noise)

    def on_after_backward(self) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in self.parameters() if p.grad is not None]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


class FixedWeights(MitigationCallback):
    """Weights by key, so that a hand-written loss can do the same."""

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        return torch.tensor([WEIGHT[key] for key in observation.keys])


def batches(count: int = 16) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    items = [
        {
            "key": "abcd"[index % 4],
            "latents": torch.randn(4, 8, 8, generator=generator),
            "text": torch.randn(5, 16, generator=generator),
        }
        for index in range(count)
    ]
    return DataLoader(items, batch_size=4)


def fit(module: LightningModule, folder: Path, callbacks: list[Any], data: Any = None, **options: Any) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, "accelerator": "cpu", **options},
    )
    trainer.fit(module, data or batches())
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_foreign_module_gets_the_gradients_of_hand_written_re_weighting(
    pipeline: StableDiffusionPipeline, tmp_path: Path, accumulate: int
) -> None:
    ours, by_hand = Foreign(pipeline.unet), Foreign(pipeline.unet, by_hand=True)
    callbacks = [MemorizationMonitor(reference=False), FixedWeights()]
    fit(ours, tmp_path / "a", callbacks, accumulate_grad_batches=accumulate)
    fit(by_hand, tmp_path / "b", [], accumulate_grad_batches=accumulate)
    assert len(ours.gradients) == 8
    for gated, expected in zip(ours.gradients, by_hand.gradients, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(gated, expected, atol=1e-7, rtol=1e-4)
    rows = read_steps(tmp_path / "a" / "records").to_pylist()
    assert len(rows) == 32
    assert all(row["weight"] == WEIGHT[row["key"]] for row in rows)
    assert all(row["step"] == row["batch"] // accumulate for row in rows), "optimizer steps before the batch"
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in ours.modules())


def test_recorded_losses_are_the_hosts(
    pipeline: StableDiffusionPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Foreign(pipeline.unet)
    fit(module, tmp_path, [MemorizationMonitor(reference=False)], max_steps=1, accumulate_grad_batches=1)
    fresh, batch = Foreign(pipeline.unet), next(iter(batches()))
    mean = fresh.training_step(batch, 0).item()
    losses = read_steps(tmp_path / "records")["denoising_loss"].to_pylist()
    assert sum(losses) / 4 == pytest.approx(mean, rel=1e-5)
    evidence = read_table(tmp_path / "records", "evidence")
    assert set(evidence["key"].to_pylist()) == set("abcd")
    assert (evidence["group"].null_count, evidence.schema.field("group").type) == (4, pa.string())
    assert (tmp_path / "flagged.csv").read_text().startswith("key,caption,picture_family,caption_family")
    kept = json.loads((tmp_path / "records" / "calibration.json").read_text())
    assert (kept["threshold"], kept["heldout"], kept["samples"], kept["judged"]) == (None, None, 4, 0)
    shown = capsys.readouterr().out
    assert "4 of 4 training samples had fewer than 6 counted visits" in shown
    assert "memtrain measure --run" not in shown, "there is no configuration to read"


DISTRIBUTED = """
import sys, torch
from pathlib import Path
from tests.callbacks.test_monitor import *

def main(folder, kind, pipeline):
    unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet")
    module = Foreign(unet, by_hand=kind == "hand")
    callbacks = [] if kind == "hand" else [MemorizationMonitor(reference=False), FixedWeights()]
    trainer = fit(module, folder, callbacks, devices=2, strategy="ddp", max_epochs=1)
    torch.save(module.gradients, folder / f"{kind}-{trainer.global_rank}.pt")

for kind in ("ours", "hand"):
    main(Path(sys.argv[1]), kind, sys.argv[2])
"""


@pytest.mark.slow
def test_the_same_holds_on_two_ddp_processes(pipeline_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "distributed.py"
    script.write_text(DISTRIBUTED)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), str(pipeline_folder)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        ours = torch.load(tmp_path / f"ours-{rank}.pt", weights_only=True)
        hand = torch.load(tmp_path / f"hand-{rank}.pt", weights_only=True)
        assert len(ours) == 2
        for gated, expected in zip(ours, hand, strict=True):
            torch.testing.assert_close(gated, expected, atol=1e-7, rtol=1e-4)
    table = read_steps(tmp_path / "records")
    assert sorted(table["rank"].to_pylist()) == [0] * 8 + [1] * 8


class ForeignData(LightningDataModule):
    """A user's own data module: samples and visits, but no groups."""

    def __init__(self) -> None:
        super().__init__()
        self.visits_per_epoch = dict.fromkeys("abcd", 4)
        self.train_dataset = SimpleNamespace(samples=[SimpleNamespace(key=key, caption=f"a {key}") for key in "abcd"])
        self.heldout_dataset = SimpleNamespace(samples=[SimpleNamespace(key="e", caption="an e")])

    def train_dataloader(self) -> DataLoader[Any]:
        return batches()


@pytest.mark.parametrize("groups", [None, {"a": "planted", "e": "heldout"}])
def test_groups_are_recorded_where_the_data_module_knows_them(
    pipeline: StableDiffusionPipeline, tmp_path: Path, groups: dict[str, str] | None
) -> None:
    data = ForeignData()
    if groups is not None:
        data.groups = groups
    fit(Foreign(pipeline.unet), tmp_path, [MemorizationMonitor(reference=False)], data=data, max_epochs=1)
    for name, keys in (("samples", "abcde"), ("evidence", "abcd")):
        table = read_table(tmp_path / "records", name)
        found = dict(zip(table["key"].to_pylist(), table["group"].to_pylist(), strict=True))
        assert found == {key: (groups or {}).get(key) for key in keys}
        assert table.schema.field("group").type == pa.string()


class CaptionsDropped(ForeignData):
    """Of the four captions in a batch, the first was dropped; the third sample never had any."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "caption": ["", "a b", "", "a d"]}


@pytest.mark.parametrize("reference", [False, "paired"])
def test_visits_with_a_dropped_caption_are_no_evidence(
    pipeline: StableDiffusionPipeline, tmp_path: Path, reference: Any
) -> None:
    data = CaptionsDropped()
    data.train_dataset.samples[2].caption = ""
    monitor = MemorizationMonitor(
        reference=reference,
        paired_every=1,
        settings=WatchSettings(maximum_timestep=1000),
    )
    fit(Foreign(pipeline.unet), tmp_path, [monitor], data=data, max_epochs=8)
    seen = dict(zip(monitor.calibration.samples.row, monitor.calibration.samples.total.abs().amax(dim=1), strict=True))
    assert {key for key, total in seen.items() if total == 0} == {"a"}
    rows = read_steps(tmp_path / "records").to_pylist()
    for name in ("denoising_loss", *(["base.denoising_loss"] if reference else [])):
        assert all((row[name] != row[name]) == (row["key"] == "a") for row in rows)


def test_captions_that_are_no_strings_are_the_hosts_own_business(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    class Embedded(Foreign):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return {**batch, "caption": batch["text"]}

    fit(Embedded(pipeline.unet), tmp_path, [MemorizationMonitor(reference=False)], max_epochs=1)
    assert all(loss == loss for loss in read_steps(tmp_path / "records")["denoising_loss"].to_pylist())


def test_skipping_without_a_monitor_is_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no MemorizationMonitor"):
        fit(Foreign(pipeline.unet), tmp_path, [SampleSkipping()])


def test_batches_without_keys_are_refused_and_hooks_removed(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    module = Foreign(pipeline.unet)
    with pytest.raises(DataError, match=r"no sample keys: found \['key', 'latents', 'text'\]"):
        fit(module, tmp_path, [MemorizationMonitor(reference=False, key_field="name")])
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())


def test_a_reference_needs_a_module_that_can_be_measured(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="`reference: paired` or `reference: false`"):
        fit(Foreign(pipeline.unet), tmp_path, [MemorizationMonitor()])


def test_a_second_fit_with_the_same_callback_starts_anew(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    monitor = MemorizationMonitor(reference=False)
    for folder in ("first", "second"):
        fit(Foreign(pipeline.unet), tmp_path / folder, [monitor])
        batches_seen = read_steps(tmp_path / folder / "records")["batch"].to_pylist()
        assert batches_seen == [batch for batch in range(8) for _ in range(4)]


def test_an_unknown_signal_to_flag_by_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'mood' is no measured signal"):
        MemorizationMonitor(flag_by="mood")


@pytest.mark.parametrize(
    ("option", "found"),
    [
        ({"evidence_window": 0}, "evidence_window=0"),
        ({"minimum_visits": 0}, "minimum_visits=0"),
        ({"maximum_timestep": 0}, "maximum_timestep=0"),
        ({"reference_draws": 0}, "reference_draws=0"),
        ({"heldout_batch": 0}, "heldout_batch=0"),
        ({"false_positive_rate": 0.0}, r"false_positive_rate=0\.0"),
        ({"false_positive_rate": float("nan")}, "false_positive_rate=nan"),
        ({"reference_timesteps": ()}, r"reference_timesteps=\(\)"),
        ({"reference_timesteps": (100, 100)}, r"reference_timesteps=\(100, 100\)"),
        ({"reference_timesteps": (-1, 100)}, r"reference_timesteps=\(-1, 100\)"),
        ({"paired_every": 0}, "paired_every=0"),
    ],
)
def test_settings_under_which_nothing_could_be_flagged_are_refused(option: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigurationError, match=found):
        if option.keys() <= {one.name for one in fields(WatchSettings)}:
            WatchSettings(**option)
        MemorizationMonitor(**option)


def test_more_visits_than_the_evidence_remembers_may_be_asked_for() -> None:
    assert (
        MemorizationMonitor(
            minimum_visits=20,
            settings=WatchSettings(evidence_window=12),
        ).options.minimum_visits
        == 20
    )
    calibration = Calibration(
        1, scored=slice(0, 1), memorized_when="high", buckets=1, minimum_visits=20, window=12, heldout=False
    )
    keys = [f"k{index}" for index in range(60)]
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        values = torch.randn(60, 1, generator=generator)
        values[0] += 20
        calibration.add(keys, [0] * 60, values, step=step)
    assert calibration.first_flagged["k0"] >= 19


def test_mitigations_learn_which_samples_have_visits_enough(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    seen: list[tuple[list[str], list[bool]]] = []

    class Looks(MitigationCallback):
        def weights(self, observation: Observation, flags: Flags) -> Tensor:
            assert flags.ready is not None
            seen.append((list(flags.visits(flags.keys)), flags.ready.tolist()))
            return super().weights(observation, flags)

    monitor = MemorizationMonitor(
        reference=False,
        minimum_visits=2,
        settings=WatchSettings(calibrate_every=1),
    )
    fit(Foreign(pipeline.unet), tmp_path, [monitor, Looks()], max_epochs=8)
    assert all(ready == [visits >= 2 for visits in counted] for counted, ready in seen)
    assert {ready for _, part in seen for ready in part} == {False, True}


def test_skipping_follows_the_flags() -> None:
    flags = Flags(torch.tensor([True, False, False]), torch.tensor([True, True, False]), torch.zeros(3))
    observation = Observation(["a", "b", "c"])
    assert SampleSkipping().weights(observation, flags).tolist() == [0.0, 0.0, 1.0]
    assert SampleSkipping(permanent=False).weights(observation, flags).tolist() == [0.0, 1.0, 1.0]
