"""The fine-tuning module: its loss, its randomness, its weight average, and exact resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from lightning.pytorch import seed_everything

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.data.module import TextImageDataModule
from memtrain.data.selection import Duplicates
from memtrain.errors import ConfigurationError
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps, read_table
from memtrain.training.text_to_image import TextToImageModule
from tests.conftest import train


@pytest.fixture
def module(pipeline_folder: Path) -> TextToImageModule:
    return TextToImageModule(str(pipeline_folder), learning_rate=1e-3, ema_decay=0.9, seed=1)


def batch(module: TextToImageModule, count: int = 3) -> dict[str, Any]:
    ids = module.tokenizer(["a b", "c", "d e f"][:count], padding="max_length", return_tensors="pt")["input_ids"]
    pixels = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"pixel_values": pixels, "input_ids": ids}


def test_pixels_and_their_latents_give_the_same_loss(module: TextToImageModule) -> None:
    with_pixels = batch(module)
    with_latents = {**with_pixels, "latents": module.encode_images(with_pixels["pixel_values"])}
    timesteps = torch.tensor([10, 400, 900])
    losses = [module.sample_loss(b, timesteps, module.step_generator(0)).detach() for b in (with_pixels, with_latents)]
    assert torch.equal(*losses)
    assert losses[0].shape == (3,)


def test_the_loss_is_the_mean_squared_error_of_the_predicted_noise(module: TextToImageModule) -> None:
    data, timesteps = batch(module), torch.tensor([10, 400, 900])
    latents = module.encode_images(data["pixel_values"])
    noise = torch.randn(latents.shape, generator=module.step_generator(5))
    alpha = module.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    prediction = module.denoiser(noisy, timesteps, module.text_encoder(data["input_ids"])[0]).sample
    expected = (prediction - noise).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(module.sample_loss(data, timesteps, module.step_generator(5)), expected)


def test_frozen_parts_are_in_no_checkpoint_and_get_no_gradient(module: TextToImageModule) -> None:
    assert all(name.startswith("denoiser.") for name in module.state_dict())
    module.sample_loss(batch(module), torch.tensor([1, 2, 3]), module.step_generator(0)).mean().backward()
    assert all(p.grad is None for p in module.vae.parameters())
    assert all(p.grad is None for p in module.text_encoder.parameters())
    assert all(p.grad is not None for p in module.denoiser.parameters())


def test_a_frozen_text_encoder_follows_its_input(module: TextToImageModule) -> None:
    """Callbacks ask for losses before Lightning has called the module's own on_fit_start."""
    embeddings = module.encode_text(torch.zeros(1, 12, dtype=torch.int64, device="meta"))
    assert embeddings.device.type == module.text_encoder.device.type == "meta"


def test_the_autoencoder_is_where_the_pixels_are(module: TextToImageModule) -> None:
    latents = module.encode_images(torch.zeros(1, 3, 16, 16, device="meta"))
    assert latents.device.type == module.vae.device.type == "meta"


def test_the_text_encoder_can_be_trained(pipeline_folder: Path) -> None:
    module = TextToImageModule(str(pipeline_folder), train_text_encoder=True)
    module.sample_loss(batch(module), torch.tensor([1, 2, 3]), module.step_generator(0)).mean().backward()
    assert any(name.startswith("trained_text_encoders.") for name in module.state_dict())
    assert module.text_encoder.get_input_embeddings().weight.grad.abs().sum() > 0


def test_noise_depends_on_every_counter(module: TextToImageModule) -> None:
    draws = {
        counters: torch.randn(2, generator=module.step_generator(*counters)).tolist()
        for counters in [(0, 0), (0, 1), (1, 0), (1, 1)]
    }
    assert len({tuple(draw) for draw in draws.values()}) == 4
    assert torch.randn(2, generator=module.step_generator(1, 0)).tolist() == draws[(1, 0)]


def test_averaged_weights_come_and_go(module: TextToImageModule) -> None:
    live = [p.detach().clone() for p in module.parameters()]
    assert module.ema is not None
    for shadow in module.ema.shadow_params:
        shadow.fill_(0.5)
    with module.averaged_weights():
        assert all(bool((p == 0.5).all()) for p in module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), live, strict=True))


def test_a_missing_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not a diffusers pipeline"):
        TextToImageModule(str(tmp_path))


def run(
    folder: Path, images: Path, pretrained: Path, *, stop: int, resume: bool = False, minimum_visits: int = 2
) -> TextToImageModule:
    seed_everything(0)
    module = TextToImageModule(str(pretrained), learning_rate=1e-3, schedule="constant", ema_decay=0.9)
    data = TextImageDataModule(
        str(images),
        resolution=16,
        batch_size=4,
        heldout="split",
        heldout_fraction=0.34,
        duplicates=Duplicates(count=2, repeats=6),
        cache_latents=True,
        caption_dropout=0.2,
    )
    train(
        folder,
        module,
        data,
        callbacks=[
            MemorizationMonitor(
                false_positive_rate=0.1,
                minimum_visits=minimum_visits,
                reference_folder=str(folder.parent / "profiles"),
                settings=WatchSettings(
                    reference_timesteps=(200, 600), reference_draws=1, calibrate_every=2, heldout_batch=3
                ),
            ),
            SampleSkipping(),
            PipelineExport(),
        ],
        stop=stop,
        resume=resume,
    )
    return module


def test_a_resumed_run_is_the_uninterrupted_one(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Stops in the middle of the second epoch, some steps after the last checkpoint."""
    images = write_folder(24)
    whole = run(tmp_path / "whole", images, pipeline_folder, stop=17)
    run(tmp_path / "cut", images, pipeline_folder, stop=11)
    resumed = run(tmp_path / "cut", images, pipeline_folder, stop=17, resume=True)

    tables = [read_steps(tmp_path / name / "records") for name in ("whole", "cut")]
    assert tables[0].num_rows == 17 * 4
    for name in set(tables[0].column_names) - {"score"}:
        # By what is printed, because the values of visits without a caption are NaN, which equals nothing.
        assert repr(tables[0][name].to_pylist()) == repr(tables[1][name].to_pylist()), name
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert whole.ema is not None
    assert resumed.ema is not None
    for a, b in zip(whole.ema.shadow_params, resumed.ema.shadow_params, strict=True):
        torch.testing.assert_close(a, b)
    evidence = [read_table(tmp_path / name / "records", "evidence") for name in ("whole", "cut")]
    for name in ("key", "visits", "flagged", "first_flagged_step"):
        assert evidence[0][name].to_pylist() == evidence[1][name].to_pylist()
    torch.testing.assert_close(*(torch.tensor(table["score"].to_pylist()) for table in evidence))


def test_a_run_leaves_records_profile_and_a_pipeline_that_loads(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    module = run(tmp_path / "run", write_folder(24), pipeline_folder, stop=6)
    samples = read_table(tmp_path / "run" / "records", "samples").to_pylist()
    assert sum(row["split"] == "heldout" for row in samples) == 8
    assert sorted(row["visits_per_epoch"] for row in samples if row["split"] == "train") == [1] * 14 + [6] * 2
    rows = read_steps(tmp_path / "run" / "records")
    assert sum(name.startswith("attention_entropy.") for name in rows.column_names) == 3
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert pipeline("a b", num_inference_steps=2).images[0].size == (16, 16)
    assert module.ema is not None
    for exported, average in zip(pipeline.unet.parameters(), module.ema.shadow_params, strict=True):
        torch.testing.assert_close(exported, average)
    profiles = list((tmp_path / "profiles").iterdir())
    assert len(profiles) == 1
    run(tmp_path / "again", tmp_path / "images", pipeline_folder, stop=1)
    assert list((tmp_path / "profiles").iterdir()) == profiles, "the same base model and data share a profile"


def test_too_few_heldout_samples_stop_the_run_before_training(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from memtrain.errors import CalibrationError

    with pytest.raises(CalibrationError, match="held-out samples cannot calibrate"):
        run(tmp_path / "run", write_folder(12), pipeline_folder, stop=3)
