"""The base model on the same noise: exact values, untouched training, adapters switched off, and resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from lightning.pytorch import seed_everything
from peft import LoraConfig, get_peft_model

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.data.module import TextImageDataModule
from memtrain.data.selection import Duplicates
from memtrain.errors import ConfigurationError
from memtrain.monitoring.options import WatchSettings
from memtrain.monitoring.paired_reference import PairedReference
from memtrain.records import read_steps, read_table
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.guidance_norm import GuidanceNorm
from memtrain.training.text_to_image import TextToImageModule
from tests.callbacks.test_guidance_norm_skipping import WithEmptyText
from tests.callbacks.test_monitor import Foreign, fit
from tests.conftest import train


def test_base_values_are_the_base_models_and_training_is_untouched(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    """A learning rate of zero in a second run shows what the base model says about the same noise."""
    signals = [DenoisingLoss(), AttentionEntropy(), GuidanceNorm(every=2)]
    watched, plain, frozen = (WithEmptyText(pipeline.unet) for _ in range(3))
    fit(watched, tmp_path / "watched", [MemorizationMonitor(list(signals), reference="paired", paired_every=2)])
    fit(plain, tmp_path / "plain", [MemorizationMonitor(list(signals), reference=False)])
    frozen.configure_optimizers = lambda: torch.optim.SGD(frozen.parameters(), lr=0.0)  # type: ignore[method-assign]
    fit(frozen, tmp_path / "frozen", [MemorizationMonitor(list(signals), reference=False)])
    for ours, theirs in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    rows, base = (read_steps(tmp_path / name / "records") for name in ("watched", "frozen"))
    columns = [name.removeprefix("base.") for name in rows.column_names if name.startswith("base.")]
    assert len(columns) == 5
    for name in columns:
        ours = torch.tensor(rows[f"base.{name}"].to_pylist()).view(8, 4)
        theirs = torch.tensor(base[name].to_pylist()).view(8, 4)
        assert ours[1::2].isnan().all()
        torch.testing.assert_close(ours[::2], theirs[::2], atol=1e-5, rtol=1e-4)
    changed = torch.tensor(rows["denoising_loss"].to_pylist()).view(8, 4) - torch.tensor(
        rows["base.denoising_loss"].to_pylist()
    ).view(8, 4)
    assert changed[0].abs().max() < 1e-5
    assert changed[6].abs().max() > 1e-5


def test_an_adapter_is_switched_off(pipeline: StableDiffusionPipeline) -> None:
    unet = UNet2DConditionModel.from_config(pipeline.unet.config)
    unet.load_state_dict(pipeline.unet.state_dict())
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), torch.randn(2, 7, 16))
    with torch.no_grad():
        before = unet(*inputs).sample
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=True))
    paired = PairedReference(unet)
    assert sum(value.numel() for value in paired._start.values()) < 0.1 * sum(p.numel() for p in unet.parameters())
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if "lora_B" in name:
                value.fill_(0.3)
        trained = unet(*inputs).sample
        with paired.base_weights(unet):
            torch.testing.assert_close(unet(*inputs).sample, before)
        assert torch.equal(unet(*inputs).sample, trained)
    assert (trained - before).abs().max() > 1e-3


def test_a_wrapped_denoiser_has_the_parameters_of_the_inner_one(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    unet = UNet2DConditionModel.from_config(pipeline.unet.config)
    paired = PairedReference(torch.compile(unet, backend="eager"))
    before = unet.conv_in.weight.detach().clone()
    with torch.no_grad():
        unet.conv_in.weight.add_(1)
    with paired.base_weights(unet):
        assert torch.equal(unet.conv_in.weight, before)

    module: Any = Foreign(pipeline.unet)
    module.unet = get_peft_model(module.unet, LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    fit(module, tmp_path, [MemorizationMonitor([DenoisingLoss()], reference="paired")], max_epochs=1)
    rows = read_steps(tmp_path / "records").to_pylist()
    assert all(row["base.denoising_loss"] == pytest.approx(row["denoising_loss"], rel=1e-5) for row in rows[:4])


def test_parameters_that_appear_later_are_refused(pipeline: StableDiffusionPipeline) -> None:
    unet = UNet2DConditionModel.from_config(pipeline.unet.config).requires_grad_(False)
    with pytest.raises(ConfigurationError, match="no trainable parameter"):
        PairedReference(unet)
    unet.conv_in.requires_grad_(True)
    paired = PairedReference(unet)
    unet.conv_out.requires_grad_(True)
    with (
        pytest.raises(ConfigurationError, match="2 trainable parameters were added"),
        paired.base_weights(unet),
    ):
        pass


def run(folder: Path, images: Path, pretrained: Path, *, stop: int, resume: bool = False) -> TextToImageModule:
    seed_everything(0)
    module = TextToImageModule(str(pretrained), learning_rate=1e-3, ema_decay=None)
    data = TextImageDataModule(
        str(images),
        resolution=16,
        batch_size=4,
        heldout_fraction=0.34,
        duplicates=Duplicates(count=2, repeats=6),
        cache_latents=True,
    )
    callbacks: list[Any] = [
        MemorizationMonitor(
            [DenoisingLoss(), GuidanceNorm(every=1)],
            reference="paired",
            paired_every=2,
            false_positive_rate=0.1,
            minimum_visits=2,
            settings=WatchSettings(reference_timesteps=(200, 600), calibrate_every=2, heldout_batch=3),
        ),
        SampleSkipping(),
    ]
    train(folder, module, data, callbacks=callbacks, stop=stop, resume=resume)
    return module


def test_a_resumed_run_still_knows_the_base_model(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    images = write_folder(24)
    whole = run(tmp_path / "whole", images, pipeline_folder, stop=11)
    run(tmp_path / "cut", images, pipeline_folder, stop=7)
    resumed = run(tmp_path / "cut", images, pipeline_folder, stop=11, resume=True)
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    tables = [read_steps(tmp_path / name / "records") for name in ("whole", "cut")]
    for name in tables[0].column_names:
        columns = [table[name].to_pylist() for table in tables]
        assert [repr(value) for value in columns[0]] == [repr(value) for value in columns[1]], name
    evidence = [read_table(tmp_path / name / "records", "evidence") for name in ("whole", "cut")]
    assert evidence[0]["key"].to_pylist() == evidence[1]["key"].to_pylist()
    assert evidence[0]["score"].to_pylist() == evidence[1]["score"].to_pylist()
    assert any(score != 0 for score in evidence[0]["score"].to_pylist())
    assert not (tmp_path / "whole" / "profiles").exists(), "nothing is measured before training"


@pytest.mark.slow
def test_the_base_model_is_not_compared_with_itself(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The differences before the first step, all zero, once made every later one look huge."""
    module = TextToImageModule(str(pipeline_folder), learning_rate=1e-5, ema_decay=None, seed=0)
    data = TextImageDataModule(str(write_folder(60)), heldout_fraction=0.25, resolution=16, batch_size=8, seed=0)
    monitor = MemorizationMonitor(
        reference="paired",
        paired_every=1,
        false_positive_rate=0.05,
        settings=WatchSettings(calibrate_every=2, heldout_batch=15),
    )
    train(tmp_path, module, data, callbacks=[monitor], stop=60)
    assert 0.5 < monitor.calibration.threshold < 10
    assert len(monitor.calibration.first_flagged) <= 4
    assert not monitor.calibration.samples.total.isnan().all()


def test_without_heldout_samples_the_bulk_calibrates(
    pipeline: StableDiffusionPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(Foreign(pipeline.unet), tmp_path, [MemorizationMonitor(reference="paired", paired_every=1)])
    assert "flags rest on the bulk of the training samples" in caplog.text


def adapted(pipeline: StableDiffusionPipeline) -> Any:
    unet = UNet2DConditionModel.from_config(pipeline.unet.config)
    unet.load_state_dict(pipeline.unet.state_dict())
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights="gaussian"))
    return unet.train()


def learn(unet: Any) -> None:
    for name, value in unet.named_parameters():
        if "lora_" in name:
            value.data.add_(0.3 * torch.randn(value.shape))


@pytest.mark.parametrize("kind", ["plain", "checkpointing", pytest.param("compiled", marks=pytest.mark.slow)])
def test_switching_adapters_off_is_exchanging_them_bit_for_bit(
    kind: str, pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No copy is kept; between forward and backward it changes no gradient."""
    unet = adapted(pipeline)
    if kind == "checkpointing":
        unet.enable_gradient_checkpointing()
    host: Any = torch.compile(unet, backend="eager") if kind == "compiled" else unet
    off = PairedReference(host)
    with monkeypatch.context() as patched:
        patched.setattr("memtrain.monitoring.paired_reference.can_be_switched_off", lambda *_: False)
        exchanged = PairedReference(host)
    assert off.switches_off and not off._start
    assert not exchanged.switches_off and exchanged._start
    learn(unet)
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), torch.randn(2, 7, 16))
    host(*inputs).sample.square().mean().backward()
    expected = [value.grad.clone() for value in unet.parameters() if value.requires_grad]
    unet.zero_grad()
    result, found = host(*inputs).sample, []
    for paired in (off, exchanged):
        with paired.base_weights(host), torch.no_grad():
            found.append(host(*inputs).sample)
    assert torch.equal(*found)
    assert not torch.allclose(found[0], result, atol=1e-3)
    result.square().mean().backward()
    gradients = [value.grad for value in unet.parameters() if value.requires_grad]
    assert len(gradients) == len(expected)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_adapters_that_were_trained_before_are_exchanged(pipeline: StableDiffusionPipeline) -> None:
    unet = adapted(pipeline)
    learn(unet)
    paired = PairedReference(unet)
    assert not paired.switches_off
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), torch.randn(2, 7, 16))
    with torch.no_grad():
        before = unet(*inputs).sample
        learn(unet)
        with paired.base_weights(unet):
            assert torch.equal(unet(*inputs).sample, before)
