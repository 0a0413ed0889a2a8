"""Every family of pipelines in training: its text, its loss, what the probe reads, LoRA, a run, and its export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from lightning.pytorch import Trainer, seed_everything
from PIL import Image

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.module import TextImageDataModule
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.models.quiet_loading import quiet_loading
from memtrain.models.stock_pipeline import own_size, sampling_arguments
from memtrain.records import read_steps
from memtrain.training.lora import LoRA
from memtrain.training.pipelines.find import families
from memtrain.training.text_to_image import TextToImageModule

from .pipelines import KINDS, pipeline_of
from .probe_oracle import assert_reads, oracle
from .training_loops import LOSSES

CAPTIONS = ["a dog", "Some cat", "x y z"]
TIMESTEPS = torch.tensor([10, 500, 900])


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(kind)
    pipeline_of(kind).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    return loaded(folder)


@pytest.fixture(scope="module")
def module(folder: Path) -> TextToImageModule:
    return TextToImageModule(str(folder), ema_decay=None, seed=0)


def loaded(folder: Path) -> Any:
    with quiet_loading():
        pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def batch_of(module: TextToImageModule) -> dict[str, Any]:
    """With encoded captions: the text encoders' own attention is none of the denoiser's."""
    channels = module.vae.config["latent_channels"]
    latents = torch.randn(3, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens = module.tokens(CAPTIONS)
    with torch.no_grad():
        return {"key": list("abc"), "latents": latents, **tokens, **module.encode_tokens(tokens)}


def test_every_family_is_here() -> None:
    known = {name for family in families() for name in family.classes}
    assert known == {type(pipeline_of(kind)).__name__ for kind in KINDS} | {"PixArtSigmaPipeline"}


def test_text_is_that_of_the_stock_pipeline(kind: str, module: TextToImageModule, stock: Any) -> None:
    tokens = module.tokens(CAPTIONS)
    with torch.no_grad():
        found = module.encode_tokens(tokens)
        if kind == "unet":
            expected = {"text_embeddings": stock.encode_prompt(CAPTIONS, "cpu", 1, False)[0]}
        elif kind in ("pixart", "sana"):
            text, mask, *_ = stock.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
            expected = {"text_embeddings": text, "text_mask": mask}
        elif kind == "flux":
            text, pooled, _ = stock.encode_prompt(CAPTIONS, None)
            expected = {"text_embeddings": text, "pooled_embeddings": pooled}
        else:
            prompts = [CAPTIONS] if kind == "sdxl" else [CAPTIONS, None, None]
            text, _, pooled, _ = stock.encode_prompt(*prompts, do_classifier_free_guidance=False)
            expected = {"text_embeddings": text, "pooled_embeddings": pooled}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert tokens["prompt_length"].tolist() == [6, 9, 5]
    assert all(len(value) == 3 for value in tokens.values())
    if kind not in ("unet", "sdxl"):
        texts = 2 if kind == "sd3" else 1
        assert tokens["prompt_mask"].shape == found["text_embeddings"].shape[:2]
        assert tokens["prompt_mask"].sum(1).tolist() == [4 * texts, 7 * texts, 3 * texts]


def test_the_loss_is_that_of_diffusers_script(kind: str, module: TextToImageModule, stock: Any) -> None:
    batch = {name: value for name, value in batch_of(module).items() if "embeddings" not in name}
    noise = torch.randn(batch["latents"].shape, generator=module.step_generator(3))
    with torch.no_grad():
        found = module.sample_loss(batch, TIMESTEPS, module.step_generator(3))
        expected = LOSSES[kind](stock, CAPTIONS, batch["latents"], noise, TIMESTEPS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_latents_are_those_that_the_stock_autoencoder_decodes(kind: str, module: TextToImageModule) -> None:
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = module.encode_images(pixels)
    config, encoded = module.vae.config, module.vae.encode(pixels)
    raw = encoded.latent if kind == "sana" else encoded.latent_dist.mode()
    expected = (raw - (config.get("shift_factor") or 0)) * config["scaling_factor"]
    torch.testing.assert_close(latents, expected)


def test_the_probe_reads_what_the_attention_gets(kind: str, module: TextToImageModule) -> None:
    batch = batch_of(module)

    def forward() -> torch.Tensor:
        return module.sample_loss(batch, TIMESTEPS, module.step_generator(0))

    expected = oracle(kind, module.denoiser, forward, tokens=batch["text_embeddings"].shape[1])
    with DenoiserProbe(module.denoiser, sites="*") as probe:
        probe.begin(Observation(batch["key"], batch["prompt_length"], batch.get("prompt_mask")))
        forward().mean().backward()
        observation = probe.end()
    module.zero_grad()
    assert_reads(observation, expected)
    assert observation.entropy("prompt").isfinite().all()
    torch.testing.assert_close(observation.timesteps.float(), TIMESTEPS.float(), atol=1e-3, rtol=0)


def test_the_unconditional_prediction_has_every_form_of_the_empty_caption(module: TextToImageModule) -> None:
    batch, empty = batch_of(module), module.tokens(["", "", ""])
    with torch.no_grad():
        other = {**batch, **empty, **module.encode_tokens(empty)}
    seen: list[torch.Tensor] = []
    with DenoiserProbe(module.denoiser, keep_call=True) as probe:
        for content in (batch, other):
            observation = Observation(batch["key"])
            with probe.measure(observation):
                module.sample_loss(content, TIMESTEPS, module.step_generator(0))
            seen.append(observation.prediction)  # type: ignore[arg-type]
            if content is batch:
                with torch.no_grad():
                    seen.append(probe.predict(observation, module.unconditional_text()))
    torch.testing.assert_close(seen[1], seen[2])
    assert (seen[0] - seen[1]).abs().max() > 1e-4


def test_lora_alone_is_trained(folder: Path) -> None:
    module = TextToImageModule(str(folder), lora=LoRA(rank=2), ema_decay=None, seed=0)
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    for target in module.parts.lora_targets:
        assert any(f".{target}.lora_B" in name for name in names), target
    module.sample_loss(batch_of(module), TIMESTEPS, module.step_generator(0)).mean().backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name)
    assert any(p.grad.abs().sum() > 0 for name, p in module.named_parameters() if "lora_B" in name)


def write_images(folder: Path, size: int) -> str:
    folder.mkdir()
    generator, rows = torch.Generator().manual_seed(0), []
    for index in range(26):
        pixels = torch.randint(255, (size, size, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index:02}.png")
        rows.append(json.dumps({"file_name": f"{index:02}.png", "text": f"thing {chr(97 + index)}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(folder)


def test_a_run_is_watched_and_its_export_samples_alike(kind: str, folder: Path, tmp_path: Path) -> None:
    seed_everything(0)
    size = 32 if kind == "sana" else 16
    module = TextToImageModule(str(folder), learning_rate=1e-3, ema_decay=None, seed=0)
    before = [parameter.detach().clone() for parameter in module.trained()]
    data = TextImageDataModule(
        write_images(tmp_path / "images", size),
        resolution=size,
        batch_size=4,
        heldout_fraction=0.3,
        caption_dropout=0.3,
        families="off",
        cache_latents=True,
    )
    monitor = MemorizationMonitor(reference="paired", paired_every=1, false_positive_rate=0.1, minimum_visits=2)
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        callbacks=[monitor],
    )
    trainer.fit(module, data)
    table = read_steps(tmp_path / "records")
    assert table.num_rows == 8
    own, base = (torch.tensor(table[name].to_pylist()) for name in ("denoising_loss", "base.denoising_loss"))
    assert 2 < own.isfinite().sum() < 8, "visits without a caption have no value"
    torch.testing.assert_close(own[:4], base[:4], equal_nan=True, msg="the first batch is seen by the base model")
    assert any(name.startswith("attention_entropy.") for name in table.column_names)
    assert all((a - b).abs().max() > 0 for a, b in zip(module.trained(), before, strict=True) if a.grad is not None)

    exported = module.export_pipeline()
    exported.save_pretrained(tmp_path / "pipeline")
    # Memory formats differ, and with them the last bits.
    torch.testing.assert_close(sampled(loaded(tmp_path / "pipeline")), sampled(exported), atol=1e-5, rtol=0)


def sampled(pipeline: Any) -> torch.Tensor:
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    height, width = own_size(pipeline)
    image: torch.Tensor = pipeline(
        "a dog",
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=2,
        height=height or 16,
        width=width or 16,
        output_type="pt",
        **sampling_arguments(pipeline),
    ).images
    return image
