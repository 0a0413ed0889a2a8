"""One denoising problem in every family: handed over in the form of its output, and computed in the type asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.records import read_steps
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.training.denoising import Denoised
from memtrain.training.execution import Execution
from memtrain.training.lora import LoRA
from memtrain.training.objective import Objective
from memtrain.training.text_to_image import TextToImageModule
from tests.callbacks.test_monitor import fit
from tests.conformance.pipelines import KINDS, pipeline_of

TIMESTEPS = torch.tensor([10, 500, 900])


class Noted(TextToImageModule):
    """Does not learn; keeps the masked squared errors of what it denoised."""

    expected: list[float]

    def _denoise(self, *args: Any, **options: Any) -> Denoised:
        found = super()._denoise(*args, **options)
        errors = (found.prediction - found.target).detach().square()
        assert found.mask is not None
        self.expected += [
            float(error[:, mask[0].bool()].mean()) for error, mask in zip(errors, found.mask, strict=True)
        ]
        return found


def batch_of(module: TextToImageModule) -> dict[str, Any]:
    channels = module.vae.config["latent_channels"]
    latents = torch.randn(3, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return {"latents": latents, **module.tokens(["a dog", "Some cat", "x y z"])}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = {kind: str(tmp_path_factory.mktemp(kind)) for kind in KINDS}
    for kind, folder in found.items():
        pipeline_of(kind).save_pretrained(folder)
    return found


# There is a validation step, and nothing to validate.
@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_masked_huber_losses_are_compared_with_the_base_model_in_every_family(
    kind: str, folders: dict[str, str], tmp_path: Path
) -> None:
    objective = Objective(criterion="huber", min_snr_gamma=5.0)
    module = Noted(folders[kind], learning_rate=0.0, objective=objective, ema_decay=None, seed=0)
    module.expected = []
    batch = batch_of(module)
    batch["loss_mask"] = torch.zeros(3, 1, 8, 8)
    batch["loss_mask"][:, :, 1:5, 2:] = 1.0
    items = [{"key": key, **{name: values[row] for name, values in batch.items()}} for row, key in enumerate("abc")]
    monitor = MemorizationMonitor([DenoisingLoss()], reference="paired", paired_every=1)
    fit(module, tmp_path, [monitor], data=DataLoader(items, batch_size=3))
    records = read_steps(tmp_path / "records").to_pydict()
    assert len(module.expected) == 6
    for name in ("denoising_loss", "base.denoising_loss"):
        assert records[name] == pytest.approx(module.expected, rel=1e-4)


def losses(folder: str, frozen: Any, lora: LoRA | None) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    module = TextToImageModule(folder, lora=lora, ema_decay=None, execution=Execution(frozen_dtype=frozen))
    found = module.sample_loss(batch_of(module), TIMESTEPS, module.step_generator(0))
    found.mean().backward()
    return found.detach(), [p.grad for p in module.trained() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_may_be_in_half_precision_in_every_family(
    kind: str, lora: LoRA | None, folders: dict[str, str]
) -> None:
    exact, _ = losses(folders[kind], "float32", lora)
    for frozen in ("bfloat16", "float16"):
        found, gradients = losses(folders[kind], frozen, lora)
        torch.testing.assert_close(found, exact, rtol=0.02, atol=0)
        assert gradients and all(one.dtype == torch.float32 and one.isfinite().all() for one in gradients)
