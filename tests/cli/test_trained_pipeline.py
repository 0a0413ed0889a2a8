"""What `--model` may name, a checkpoint of a training among others, what it may not, and the numbers it computes in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.cli.checkpoints import checkpoints_of
from memtrain.cli.trained_pipeline import TrainedPipeline, in_type, trained, type_of
from memtrain.errors import ConfigurationError
from memtrain.evaluation.measures.heldout_loss import heldout_loss
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.chosen_detectors import chosen_detectors
from memtrain.models.adapter_file import FILE
from memtrain.training.lora import LoRA
from memtrain.training.text_to_image import TextToImageModule

ONE = Sampling(seeds=(0,), steps=2, progress=False)


def checkpoint(path: Path, pretrained: Path, *, step: int = 7, **options: Any) -> TextToImageModule:
    """What Lightning would write of a module with weights that have moved."""
    module = TextToImageModule(str(pretrained), **options)
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for value in module.trained():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    state = {"state_dict": module.state_dict(), "global_step": step}
    module.on_save_checkpoint(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return module


def image(pipeline: Any) -> torch.Tensor:
    return generate(pipeline, ["a b"], sampling=ONE).images


def test_a_checkpoint_of_all_weights_gives_its_images(pipeline_folder: Path, tmp_path: Path) -> None:
    module = checkpoint(tmp_path / "a.ckpt", pipeline_folder, ema_decay=None)
    found = image(trained(str(tmp_path / "a.ckpt")).load())
    assert torch.equal(found, image(module.export_pipeline()))
    assert not torch.equal(found, image(TrainedPipeline(str(pipeline_folder)).load()))


def test_a_checkpoint_with_an_average_gives_the_averaged_weights(pipeline_folder: Path, tmp_path: Path) -> None:
    # The average was taken before the weights moved, so it is the base model.
    checkpoint(tmp_path / "a.ckpt", pipeline_folder, ema_decay=0.9)
    found = image(trained(str(tmp_path / "a.ckpt")).load())
    assert torch.equal(found, image(TrainedPipeline(str(pipeline_folder)).load()))


def test_a_checkpoint_of_adapters_is_its_base_with_their_file(pipeline_folder: Path, tmp_path: Path) -> None:
    module = checkpoint(tmp_path / "a.ckpt", pipeline_folder, lora=LoRA(rank=2), ema_decay=None)
    module.save_adapters(tmp_path)
    found = trained(str(tmp_path / "a.ckpt")).load()
    beside = trained(str(pipeline_folder), tmp_path / FILE).load()
    assert torch.equal(image(found), image(beside))
    assert not torch.equal(image(found), image(TrainedPipeline(str(pipeline_folder)).load()))


def test_weights_in_half_precision_alone_are_read(
    pipeline: StableDiffusionPipeline, pipeline_folder: Path, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    found = trained(str(tmp_path / "half"), precision="bfloat16").load()
    assert found.unet.dtype == found.vae.dtype == found.text_encoder.dtype == torch.bfloat16
    assert torch.equal(image(found), image(trained(str(pipeline_folder), precision="bfloat16").load()))


@pytest.mark.parametrize("kind", ["missing", "pickled", "foreign", "run", "adapters", "part", "both"])
def test_what_is_no_model_is_refused_by_what_it_is(kind: str, pipeline_folder: Path, tmp_path: Path) -> None:
    model, lora, expected = str(tmp_path / "a.ckpt"), None, "There is no checkpoint"
    if kind == "pickled":
        torch.save({"state_dict": Path("x")}, model)
        expected = "cannot be read as plain tensors and numbers"
    elif kind == "foreign":
        torch.save({"model_ema": {}, "state_dict": {"a": torch.ones(1)}}, model)
        expected = "does not say which model it is of: it holds model_ema, state_dict"
    elif kind == "run":
        (tmp_path / "config.yaml").write_text("model: {}")
        model, expected = str(tmp_path), "is the folder of a training run"
    elif kind == "adapters":
        (tmp_path / FILE).write_bytes(b"")
        model, expected = str(tmp_path), "but a LoRA, which must be added to a base model"
    elif kind == "part":
        model, expected = str(pipeline_folder / "unet"), "but a UNet2DConditionModel, one part of a pipeline"
    elif kind == "both":
        torch.save({"text_to_image": {}, "state_dict": {}}, model)
        lora, expected = "some.safetensors", "which holds trained weights"
    with pytest.raises(ConfigurationError, match=expected):
        trained(model, lora)


def test_checkpoints_come_by_step_and_each_step_once(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, step in (("b", 10), ("a", 200), ("last", 200)):
        torch.save({"text_to_image": {}, "state_dict": {}, "global_step": step}, tmp_path / f"{name}.ckpt")
    found = checkpoints_of(str(tmp_path / "*.ckpt"), precision="auto", device="cpu")
    assert [(one.path.stem, one.step) for one in found] == [("b", 10), ("a", 200)]
    assert "last.ckpt, which has the same step" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="names nothing"):
        checkpoints_of(str(tmp_path / "*.safetensors"), precision="auto", device="cpu")
    with pytest.raises(ConfigurationError, match=r"names .*config\.json"):
        checkpoints_of(str(pipeline_folder / "unet" / "*"), precision="auto", device="cpu")


@pytest.mark.parametrize(
    ("precision", "gpu", "transformer", "expected"),
    [
        ("auto", False, True, torch.float32),
        ("auto", True, False, torch.float16),
        ("auto", True, True, torch.bfloat16),
        ("float16", False, True, torch.float16),
        ("float32", True, False, torch.float32),
    ],
)
def test_which_precision_is_meant(
    precision: Any, gpu: bool, transformer: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert type_of(precision, transformer=transformer) == expected


def test_layers_that_overflow_stay_in_float32() -> None:
    class Encoder(torch.nn.Module):
        _keep_in_fp32_modules = ("wo",)

        def __init__(self) -> None:
            super().__init__()
            self.wi, self.wo = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    class Pipeline:
        components: dict[str, object]

    pipeline: Any = Pipeline()
    pipeline.components = {"text_encoder": (encoder := Encoder()), "tokenizer": object()}
    in_type(pipeline, torch.float16)
    assert (encoder.wi.weight.dtype, encoder.wo.weight.dtype) == (torch.float16, torch.float32)
    in_type(pipeline, torch.bfloat16)
    assert encoder.wo.weight.dtype == torch.bfloat16


@pytest.mark.slow
def test_everything_that_samples_works_in_half_precision() -> None:
    """Detectors read nearly the same of the embedded model in bfloat16, and so does the held-out loss."""
    sampling = Sampling(seeds=range(3), steps=4, progress=False)
    found = {}
    for precision in ("float32", "bfloat16"):
        pipeline = trained("assets/tiny-sd", precision=precision).load()  # type: ignore[arg-type]
        detectors, left_out = chosen_detectors("all", pipeline, sampling)
        assert not left_out
        trace = generate(pipeline, ["a red circle", "a blue dog"], sampling=sampling, detectors=detectors)
        scores = {one.name: one.score_images(trace.readings[one.name]).float() for one in detectors}
        loss = heldout_loss(pipeline, trace.images[:, 0], captions=["a red circle", "a blue dog"])
        found[precision] = scores | {"images": trace.images.float() / 255, "loss": loss}
    for name, values in found["float32"].items():
        other = found["bfloat16"][name]
        assert other.isfinite().all()
        assert (values - other).abs().mean() < 0.05 * values.abs().mean(), name
