"""A text encoder that is trained along belongs to the base model of `reference: paired`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ConfigurationError
from memtrain.monitoring.options import WatchSettings
from memtrain.monitoring.paired_reference import trained_parameters
from memtrain.records import read_steps
from memtrain.signals.denoising_loss import DenoisingLoss
from tests.callbacks.test_monitor import Foreign, fit

# PEFT asks transformers' models for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class Both(Foreign):
    """LoRA in UNet and text encoder."""

    def __init__(self, pipeline: StableDiffusionPipeline, *, train_text: bool = True, rate: float = 2.0) -> None:
        super().__init__(pipeline.unet)
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["to_q", "to_v"])
        self.unet = get_peft_model(self.unet, config)  # type: ignore[assignment, arg-type]
        text = copy.deepcopy(pipeline.text_encoder).requires_grad_(False).train()
        self.words = get_peft_model(text, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])) if train_text else text
        self.rate = rate

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        generator = torch.Generator().manual_seed(batch_idx)
        noise = torch.randn(batch["latents"].shape, generator=generator)
        timesteps = torch.randint(1000, (len(noise),), generator=generator)
        noisy = self.noise.add_noise(batch["latents"], noise, timesteps)
        return F.mse_loss(self.unet(noisy, timesteps, self.embeddings(batch)).sample, noise)

    def embeddings(self, batch: dict[str, Any]) -> Tensor:
        text: Tensor = self.words(batch["input_ids"])[0]
        return text

    def on_after_backward(self) -> None:
        """Nothing."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.rate)


class Offers(Both):
    """Says how captions are encoded."""

    @property
    def text_encoder(self) -> nn.Module:
        return self.words

    def encode_text(self, input_ids: Tensor) -> Tensor:
        text: Tensor = self.words(input_ids)[0]
        return text


def batches() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    items = [
        {
            "key": f"k{index}",
            "latents": torch.randn(4, 8, 8, generator=generator),
            "input_ids": torch.randint(54, (12,), generator=generator),
        }
        for index in range(16)
    ]
    return DataLoader(items, batch_size=4)


def watch(module: Any, folder: Path) -> dict[str, Tensor]:
    monitor = MemorizationMonitor(
        [DenoisingLoss()], reference="paired", paired_every=1, settings=WatchSettings(calibrate_every=4)
    )
    fit(module, folder, [monitor], data=batches())
    table = read_steps(folder / "records")
    return {name: torch.tensor(table[name].to_pylist()) for name in ("denoising_loss", "base.denoising_loss")}


def test_the_base_models_text_is_that_of_the_beginning(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    trained, frozen = Offers(pipeline), Offers(pipeline, rate=0.0)
    before = [p.detach().clone() for p in trained.words.parameters()]
    with_text, at_start = watch(trained, tmp_path / "trained"), watch(frozen, tmp_path / "frozen")
    assert any((p - q).abs().max() > 1e-2 for p, q in zip(trained.words.parameters(), before, strict=True))
    torch.testing.assert_close(with_text["base.denoising_loss"], at_start["denoising_loss"], rtol=1e-5, atol=0)
    assert (with_text["denoising_loss"] / at_start["denoising_loss"] - 1).abs().max() > 1e-3


def test_without_a_way_to_encode_again_it_is_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"depend on \d+ trained parameters outside[\s\S]*encode_text"):
        watch(Both(pipeline), tmp_path / "refused")
    watch(Both(pipeline, train_text=False), tmp_path / "frozen text")


def test_an_encoding_that_is_not_the_hosts_is_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    class Other(Offers):
        def embeddings(self, batch: dict[str, Any]) -> Tensor:
            return 2 * super().embeddings(batch)

    with pytest.raises(ConfigurationError, match="does not give the text embeddings"):
        watch(Other(pipeline), tmp_path)


def test_what_depends_on_trained_parameters() -> None:
    layer, frozen = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
    inputs = torch.ones(1, 3)
    assert trained_parameters(layer(inputs)) == 2
    assert trained_parameters(frozen(layer(inputs)).exp()) == 2
    assert trained_parameters(frozen(inputs)) == 0
    assert trained_parameters(frozen(inputs.requires_grad_())) == 0, "gradient checkpointing asks for it"
    assert trained_parameters(layer.weight) == 1
    hidden = checkpoint(layer, layer(inputs).detach().requires_grad_(), use_reentrant=True)
    assert trained_parameters(hidden) == 1, "hidden by the checkpoint, but not taken for nothing"
