"""The weights that a paired comparison starts from, wherever the denoiser is built and whatever is restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from peft import LoraConfig
from torch import Tensor

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.records import read_steps
from memtrain.signals.denoising_loss import DenoisingLoss
from tests.callbacks.test_monitor import Foreign, batches, fit


class Late(Foreign):
    """Builds its denoiser in `configure_model`."""

    hook = "configure_model"

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__(unet)
        self.made = [self.unet]
        self.__dict__["_modules"].pop("unet")

    def build(self) -> None:
        if self.made:
            self.unet = self.made.pop()

    def configure_model(self) -> None:
        if self.hook == "configure_model":
            self.build()

    def setup(self, stage: str) -> None:
        if self.hook == "setup":
            self.build()


class Later(Late):
    hook = "setup"


class Adapted(Late):
    """Of which only an adapter is trained, that `configure_model` injects."""

    def build(self) -> None:
        super().build()
        self.unet.requires_grad_(False)
        self.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=True))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Own(Late):
    """Loads its checkpoint by hand."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return self.unet.load_state_dict({name.removeprefix("unet."): value for name, value in state_dict.items()})


class OwnEarly(Own):
    hook = ""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__(unet)
        self.build()


def base_losses(module: LightningModule, folder: Path, *, resume: bool = False, more: Any = ()) -> Tensor:
    """The base model's losses of batches 0 to 3 and, with `resume`, 4 to 7, which see the same noise again."""
    monitor = MemorizationMonitor([DenoisingLoss()], reference="paired", paired_every=1)
    trainer = fit(module, folder, [monitor, *more], max_epochs=1)
    if resume:
        trainer.save_checkpoint(folder / "middle.ckpt")
    return torch.tensor(read_steps(folder / "records")["base.denoising_loss"].to_pylist()).view(-1, 4)


def resumed(module: LightningModule, folder: Path) -> Tensor:
    monitor = MemorizationMonitor([DenoisingLoss()], reference="paired", paired_every=1)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[monitor],
        enable_checkpointing=False,
        max_epochs=2,
        accelerator="cpu",
        **quiet,
    )
    trainer.fit(module, batches(), ckpt_path=folder / "middle.ckpt")
    return torch.tensor(read_steps(folder / "records")["base.denoising_loss"].to_pylist()).view(-1, 4)


@pytest.mark.parametrize("kind", [Late, Later, Adapted, OwnEarly])
def test_the_base_model_is_the_one_that_training_began_with(
    pipeline: StableDiffusionPipeline, tmp_path: Path, kind: type[Late]
) -> None:
    """Each epoch has the same noise, so the base model's losses repeat, also after a checkpoint was restored."""
    first = base_losses(kind(pipeline.unet), tmp_path, resume=True)
    module = kind(pipeline.unet)
    both = resumed(module, tmp_path)
    assert both.shape == (8, 4)
    torch.testing.assert_close(both[:4], first)
    torch.testing.assert_close(both[4:], first, rtol=1e-4, atol=1e-5)
    own = torch.tensor(read_steps(tmp_path / "records")["denoising_loss"].to_pylist()).view(-1, 4)
    assert (own[4:] - first).abs().max() > 1e-4, "training changed something"
    assert not module._load_state_dict_pre_hooks


def test_what_nobody_saw_is_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    base_losses(Own(pipeline.unet), tmp_path, resume=True)
    with pytest.raises(ConfigurationError, match="build it in the module's __init__"):
        resumed(Own(pipeline.unet), tmp_path)


def test_a_module_that_is_copied_for_its_average_keeps_no_copy(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    module = Foreign(pipeline.unet)
    plain = base_losses(Foreign(pipeline.unet), tmp_path / "plain")
    averaged = WeightAveraging()
    torch.testing.assert_close(base_losses(module, tmp_path / "averaged", more=[averaged]), plain)


def test_nothing_to_train_and_nothing_to_find_are_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    class Never(Late):
        hook = ""

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)

    class Frozen(Late):
        def build(self) -> None:
            super().build()
            self.unet.requires_grad_(False)

    with pytest.raises(ProbeError, match="0 denoisers found in Never"):
        base_losses(Never(pipeline.unet), tmp_path)
    with pytest.raises(ConfigurationError, match="no trainable parameter"):
        base_losses(Frozen(pipeline.unet), tmp_path)
