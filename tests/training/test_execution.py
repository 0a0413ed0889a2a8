"""Options of execution change types, memory and time, and what they must not change stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.module import TextImageDataModule
from memtrain.errors import ConfigurationError
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from memtrain.training.execution import Execution, store_as
from memtrain.training.lora import LoRA
from memtrain.training.text_to_image import TextToImageModule
from tests.callbacks.test_monitor import fit

ROUNDING = 2**-8
"""Of one number in bfloat16."""

TIMESTEPS = torch.tensor([10, 400, 900])


def module_with(pretrained: Path, *, lora: LoRA | None = None, **options: Any) -> TextToImageModule:
    torch.manual_seed(0)
    return TextToImageModule(
        str(pretrained), lora=lora, learning_rate=1e-2, ema_decay=0.5, seed=1, execution=Execution(**options)
    )


def tokens(module: TextToImageModule) -> dict[str, Tensor]:
    return module.tokens(["a b", "c", "d e f"])


def losses(module: TextToImageModule) -> Tensor:
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return module.sample_loss({"pixel_values": pixels, **tokens(module)}, TIMESTEPS, module.step_generator(0))


def gradients(module: TextToImageModule) -> Tensor:
    losses(module).mean().backward()
    return torch.cat([p.grad.flatten() for p in module.trained() if p.grad is not None])


def types(part: torch.nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in part.parameters()}


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"channels_last": False}, {"tf32": True}])
def test_what_is_trained_stays(options: dict[str, Any], pipeline_folder: Path) -> None:
    torch.testing.assert_close(
        gradients(module_with(pipeline_folder, **options)),
        gradients(module_with(pipeline_folder)),
        atol=1e-6,
        rtol=1e-4,
    )


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
def test_what_is_frozen_has_the_type_asked_for(lora: LoRA | None, pipeline_folder: Path) -> None:
    exact = module_with(pipeline_folder, lora=lora)
    module = module_with(pipeline_folder, lora=lora, frozen_dtype="bfloat16")
    assert types(module.vae) == types(module.text_encoder) == {torch.bfloat16}
    assert {parameter.dtype for parameter in module.trained()} == {torch.float32}
    assert types(module.denoiser) == ({torch.float32} if lora is None else {torch.float32, torch.bfloat16})
    torch.testing.assert_close(losses(module), losses(exact), rtol=8 * ROUNDING, atol=0)
    assert gradients(module).isfinite().all()
    ids = module.tokens(["a"])["input_ids"]
    assert module.encode_text(ids).dtype == torch.bfloat16, "caches hold the small type"


def test_nothing_is_ever_held_in_a_larger_type(pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are read in their type: a large model in float32 may not fit."""
    seen: dict[str, set[torch.dtype]] = {}
    prepare = Execution.prepare

    def noted(self: Execution, parts: Any, *, adapters: bool) -> None:
        seen.update({"denoiser": types(parts.denoiser), "text_encoder": types(parts.pipeline.text_encoder)})
        prepare(self, parts, adapters=adapters)

    monkeypatch.setattr(Execution, "prepare", noted)
    for lora, expected in ((LoRA(rank=2), torch.bfloat16), (None, torch.float32)):
        module_with(pipeline_folder, lora=lora, frozen_dtype="bfloat16")
        assert seen == {"denoiser": {expected}, "text_encoder": {torch.bfloat16}}


def test_an_autoencoder_that_overflows_in_half_precision_stays_in_full(pipeline_folder: Path) -> None:
    module = module_with(pipeline_folder, frozen_dtype="float16")
    assert module.vae.config.force_upcast
    assert (types(module.vae), types(module.text_encoder)) == ({torch.float32}, {torch.float16})
    assert losses(module).isfinite().all()


def test_layers_that_overflow_stay_in_full_precision() -> None:
    config = T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, is_gated_act=True)
    encoder = T5EncoderModel(config).eval()
    expected = encoder(torch.tensor([[1, 2, 3]]))[0]
    for dtype in (torch.bfloat16, torch.float16):
        store_as(encoder, dtype)
        exact = {name for name, parameter in encoder.named_parameters() if parameter.dtype == torch.float32}
        assert exact == (set() if dtype == torch.bfloat16 else {"encoder.block.0.layer.1.DenseReluDense.wo.weight"})
        torch.testing.assert_close(encoder(torch.tensor([[1, 2, 3]]))[0].float(), expected, atol=0.1, rtol=0.1)
        encoder.float()


def test_latents_in_half_precision_are_noised_in_full(pipeline_folder: Path) -> None:
    module = module_with(pipeline_folder)
    small = torch.randn(3, 4, 8, 8).bfloat16()
    found = [
        module.sample_loss({"latents": latents, **tokens(module)}, TIMESTEPS, module.step_generator(0))
        for latents in (small, small.float())
    ]
    assert torch.equal(*found)


def test_a_trained_text_encoder_stays_in_full_precision(pipeline_folder: Path) -> None:
    module = TextToImageModule(
        str(pipeline_folder), train_text_encoder=True, execution=Execution(frozen_dtype="bfloat16")
    )
    assert (types(module.text_encoder), types(module.vae)) == ({torch.float32}, {torch.bfloat16})


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_trained_weights_in_half_precision_are_refused(
    precision: str, lora: LoRA | None, pipeline_folder: Path
) -> None:
    module = module_with(pipeline_folder, lora=lora)
    module._trainer = SimpleNamespace(precision=precision, strategy=None)  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match=r"half precision[\s\S]*execution.frozen_dtype"):
        module.setup("fit")


def test_weights_in_few_bits_are_for_adapters_and_need_their_package(
    pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=r"'bitsandbytes_4bit' without adapters[\s\S]*add `lora: {rank: 16}`"):
        module_with(pipeline_folder, quantize="bitsandbytes_4bit")
    monkeypatch.setattr("memtrain.training.quantization.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"needs torchao, which is not installed[\s\S]*pip install torchao"):
        module_with(pipeline_folder, lora=LoRA(rank=2), quantize="torchao_int8")


class Fixed(TextToImageModule):
    """Noise and timesteps of a sample are its own, whatever batch it is in."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # type: ignore[override]
        total = 0.0
        for index in range(len(batch["key"])):
            one = {name: batch[name][index : index + 1] for name in ("latents", "input_ids")}
            seed = sum(map(ord, batch["key"][index]))
            total = total + self.sample_loss(one, torch.tensor([seed % 1000]), self.step_generator(seed)).mean()
        return total / len(batch["key"])


def watched(
    folder: Path, images: Path, module: TextToImageModule, *, monitor: bool = True, batch_size: int = 4, **options: Any
) -> dict[str, Any]:
    seed_everything(0)
    data = TextImageDataModule(
        str(images), resolution=16, batch_size=batch_size, heldout="split", heldout_fraction=0.4, cache_latents=True
    )
    callbacks = [
        MemorizationMonitor(
            reference=False, false_positive_rate=0.2, settings=WatchSettings(online_families=False, calibrate_every=2)
        )
    ]
    fit(module, folder, callbacks if monitor else [], data=data, limit_val_batches=0, **{"max_steps": 3, **options})
    return read_steps(folder / "records").to_pydict() if monitor else {}


def test_accumulated_batches_are_one_larger_batch(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    images, trained = write_folder(24), []
    for size, accumulate in ((4, 1), (2, 2)):
        module = Fixed(str(pipeline_folder), learning_rate=1e-2, ema_decay=0.5, schedule="linear", seed=0)
        module.optimizer_class = torch.optim.SGD
        watched(
            *(tmp_path / str(size), images, module),
            monitor=False,
            batch_size=size,
            accumulate_grad_batches=accumulate,
        )
        assert module.trainer.global_step == 3
        assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0), (
            "the schedule ends with the run"
        )
        assert module.ema is not None
        trained.append([*module.trained(), *module.ema.shadow_params])
    for one, two in zip(*trained, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def test_an_average_on_the_cpu_is_the_same_in_a_run(
    pipeline_folder: Path, write_folder: Callable[..., Path], tmp_path: Path
) -> None:
    images, averages = write_folder(24), []
    for offload in (False, True):
        module = module_with(pipeline_folder, ema_offload=offload)
        watched(tmp_path / str(offload), images, module, monitor=False)
        assert module.ema is not None
        averages.append(module.ema.shadow_params)
    assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings(
    # torch.compile looks at `.grad` of every input while it traces: https://github.com/pytorch/pytorch/pull/30531
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"
)
@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
def test_a_compiled_denoiser_is_watched_as_before(
    lora: LoRA | None,
    pipeline_folder: Path,
    write_folder: Callable[..., Path],
    tmp_path: Path,
    fresh_compiler: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: original(self, backend="aot_eager"))
    images, found = write_folder(24), []
    for compiled in (False, True):
        module = module_with(pipeline_folder, lora=lora, compile=compiled)
        found.append(watched(tmp_path / str(compiled), images, module))
        assert (module.denoiser._compiled_call_impl is not None) == compiled
        module.export_pipeline().save_pretrained(tmp_path / "pipeline")
    columns = [name for name in found[0] if name.startswith(("denoising_loss", "attention_entropy"))]
    assert len(columns) > 1
    for name in columns:
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-3)
