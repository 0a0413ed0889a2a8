"""Few-bit weights under adapters: near the full ones, frozen, read as they are, and not changed by training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.data.module import TextImageDataModule
from memtrain.errors import ConfigurationError
from memtrain.functional.attention import entropy
from memtrain.models.fingerprint import weights_fingerprint
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.training.execution import Execution
from memtrain.training.lora import LoRA
from memtrain.training.quantization import Quantization
from memtrain.training.text_to_image import TextToImageModule
from tests.conftest import train
from tests.training.test_execution import watched

pytestmark = pytest.mark.filterwarnings(
    # peft says that adapters of torchao's weights cannot be merged, which nobody asks for here.
    "ignore:TorchaoLoraLinear was instantiated without:UserWarning",
    # bitsandbytes computes products of 8-bit weights in half precision, and says so.
    "ignore:MatMul8bitLt. inputs will be cast:UserWarning",
    # Both packages use what torch has deprecated since.
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)

KINDS: dict[Quantization, float] = {"bitsandbytes_4bit": 0.3, "bitsandbytes_8bit": 0.03, "torchao_int8": 0.03}
"""And how far the loss may be from that of full weights."""


def module_with(pretrained: Path, kind: Quantization) -> TextToImageModule:
    if kind != "none":
        pytest.importorskip(kind.partition("_")[0])
    torch.manual_seed(0)
    return TextToImageModule(
        str(pretrained),
        lora=LoRA(rank=2),
        learning_rate=1e-2,
        ema_decay=None,
        seed=1,
        execution=Execution(quantize=kind),
    )


def answer(module: TextToImageModule) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and attention entropies of a batch."""
    generator = torch.Generator().manual_seed(0)
    noisy, timesteps = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([10, 400, 900])
    text = module.encode_tokens(module.tokens(["a b", "c", "d e f"]))
    observation = Observation(["a", "b", "c"])
    with DenoiserProbe(module.denoiser, sites="*") as probe, torch.no_grad(), probe.measure(observation):
        prediction = module.parts.predict(noisy, timesteps, text, batch={})
    return prediction, torch.stack([entropy(value) for value in observation.token_attention.values()])


@pytest.mark.parametrize("kind", KINDS)
def test_few_bits_answer_as_many_nearly_do_and_are_read(kind: Quantization, pipeline_folder: Path) -> None:
    exact, small = module_with(pipeline_folder, "none"), module_with(pipeline_folder, kind)
    for many, few in zip(answer(exact), answer(small), strict=True):
        assert (few - many).norm() <= KINDS[kind] * many.norm()
        assert not torch.equal(few, many)
    assert weights_fingerprint(exact.denoiser) != weights_fingerprint(small.denoiser)
    # peft has layers of its own for such weights, which compute and merge as they need it.
    adapted = small.denoiser.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    assert type(adapted).__module__.rpartition(".")[2] in ("bnb", "torchao")
    # Of the layers, those of the blocks: the embedding of the timestep and the convolutions stay.
    kept = small.denoiser.time_embedding.linear_1.weight
    assert (kept.dtype, type(kept)) == (torch.float32, torch.nn.Parameter)
    assert all("lora" in name for name, p in small.denoiser.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_train_and_what_is_under_them_stays(
    kind: Quantization, pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    module = module_with(pipeline_folder, kind)
    before = answer(module)[0]
    adapters = [parameter.detach().clone() for parameter in module.trained()]
    records: dict[str, Any] = watched(tmp_path, write_folder(24), module)
    assert all(0 < loss < 10 for loss in records["denoising_loss"])
    assert any(not torch.equal(a, b) for a, b in zip(adapters, module.trained(), strict=True))
    assert not torch.equal(answer(module)[0], before)
    module.denoiser.disable_adapters()
    torch.testing.assert_close(answer(module)[0], before)


def test_a_pipeline_that_could_not_be_loaded_is_not_written() -> None:
    module: Any = SimpleNamespace(export_pipeline=None, lora=LoRA(), execution=Execution(quantize="torchao_int8"))
    export = PipelineExport(adapters="pipeline")
    with pytest.raises(ConfigurationError, match=r"cannot merge adapters into quantised weights[\s\S]*remove"):
        export.setup(SimpleNamespace(callbacks=[export]), module, "fit")  # type: ignore[arg-type]
    for export in (PipelineExport(adapters="lora"), PipelineExport(adapters="both")):
        export.setup(SimpleNamespace(callbacks=[export]), module, "fit")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_uninterrupted_one(
    kind: Quantization, pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    images, trained = write_folder(24), []

    def run(name: str, stop: int, *, resume: bool = False) -> None:
        seed_everything(0)
        module = module_with(pipeline_folder, kind)
        data = TextImageDataModule(
            str(images), resolution=16, batch_size=4, heldout="split", heldout_fraction=0.3, cache_latents=True
        )
        train(tmp_path / name, module, data, callbacks=[], stop=stop, resume=resume)
        trained.append(module.trained())

    run("whole", 5)
    run("cut", 3)
    run("cut", 5, resume=True)
    for whole, resumed in zip(trained[0], trained[2], strict=True):
        torch.testing.assert_close(whole, resumed, atol=1e-6, rtol=1e-5)
    kept = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert kept and all("lora" in name for name in kept), "weights in few bits are in no checkpoint"
