"""Checkpoints of adapters: small, exact in resuming, refused where they do not fit; and what they are converted to."""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from lightning.pytorch import seed_everything
from safetensors.torch import load_file

from memtrain import cli
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.cli.trained_pipeline import of_run
from memtrain.data.module import TextImageDataModule
from memtrain.errors import ConfigurationError
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from memtrain.training.checkpoint_contents import check_contents
from memtrain.training.execution import Execution
from memtrain.training.lora import LoRA
from memtrain.training.text_to_image import TextToImageModule
from tests.conftest import encoded_image, train

OPTIONS: dict[str, Any] = {"rank": 2, "alpha": 3, "dropout": 0.2, "text_encoder": True}
FILE = "pytorch_lora_weights.safetensors"


def run(folder: Path, pretrained: Path, *, stop: int, resume: bool = False, **export: Any) -> TextToImageModule:
    """A watched training of adapters on the images beside `folder`."""
    seed_everything(0)
    module = TextToImageModule(str(pretrained), lora=LoRA(**OPTIONS), learning_rate=1e-2, ema_decay=0.9)
    data = TextImageDataModule(
        str(folder.parent / "images"), resolution=16, batch_size=4, heldout_fraction=0.34, cache_latents=True
    )
    monitor = MemorizationMonitor(
        reference="paired", paired_every=2, settings=WatchSettings(calibrate_every=2, heldout_batch=3)
    )
    train(folder, module, data, callbacks=[monitor, PipelineExport(**export)], stop=stop, resume=resume)
    return module


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path) -> Path:
    """`whole` and, cut after the last checkpoint and gone on with, `cut`."""
    folder = tmp_path_factory.mktemp("lora")
    (folder / "images").mkdir()
    rows = []
    for index in range(12):
        (folder / "images" / f"{index}.png").write_bytes(encoded_image(index, size=(16, 16)))
        rows.append(f'{{"file_name": "{index}.png", "text": "{"abcdefghijkl"[index]} x"}}')
    (folder / "images" / "metadata.jsonl").write_text("\n".join(rows))
    run(folder / "whole", pipeline_folder, stop=7)
    run(folder / "cut", pipeline_folder, stop=4)
    run(folder / "cut", pipeline_folder, stop=7, resume=True)
    return folder


def test_a_resumed_run_is_the_uninterrupted_one(runs: Path) -> None:
    """With dropout, an average, a text encoder and the paired reference."""
    whole, cut = (load_file(runs / name / FILE) for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    tables = [read_steps(runs / name / "records") for name in ("whole", "cut")]
    assert tables[0].num_rows == 7 * 4
    for name in tables[0].column_names:
        assert repr(tables[0][name].to_pylist()) == repr(tables[1][name].to_pylist()), name


def test_a_checkpoint_holds_what_is_trained_alone(runs: Path, pipeline_folder: Path) -> None:
    state = torch.load(runs / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    module = TextToImageModule(str(pipeline_folder), lora=LoRA(**OPTIONS))
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    assert state["state_dict"].keys() == trained
    assert len(state["ema"]["shadow_params"]) == len(trained)
    assert len(state["optimizer_states"][0]["state"]) == len(trained)


def test_the_run_folder_holds_adapters_and_the_merged_pipeline(runs: Path, pipeline_folder: Path) -> None:
    """Both are the averaged weights; stock diffusers reads either."""
    fused = StableDiffusionPipeline.from_pretrained(runs / "whole" / "pipeline")
    loaded, base = (StableDiffusionPipeline.from_pretrained(pipeline_folder) for _ in range(2))
    loaded.load_lora_weights(runs / "whole")
    ids = torch.tensor([[52, 3, 4, *[53] * 9]])
    noisy, answers = torch.linspace(-2, 2, 4 * 64).view(1, 4, 8, 8), []
    with torch.no_grad():
        for one in (fused, loaded, base):
            answers.append(one.unet(noisy, 500, one.text_encoder(ids)[0]).sample)
    torch.testing.assert_close(answers[0], answers[1], atol=1e-5, rtol=1e-5)
    assert (answers[0] - answers[2]).abs().max() > 1e-3
    assert (fused.text_encoder(ids)[0] - base.text_encoder(ids)[0]).abs().max() > 1e-3
    state = torch.load(runs / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    assert of_run(runs / "whole").model == str(runs / "whole" / "pipeline")
    assert state["text_to_image"]["pretrained"] == str(pipeline_folder)


def test_a_checkpoint_is_exported_as_adapters(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = runs / "cut" / "checkpoints" / "last.ckpt"
    cli.train(["export", "--ckpt", str(checkpoint), "--output", str(tmp_path / "new")])
    assert "(step 6)" in capsys.readouterr().out
    state = torch.load(checkpoint, weights_only=True)
    found = load_file(tmp_path / "new" / FILE)
    average = dict(zip(state["state_dict"], state["ema"]["shadow_params"], strict=True))
    for name, value in average.items():
        part, _, layer = name.removeprefix("trained_text_encoders.").partition(".")
        part = "unet" if part == "denoiser" else part
        torch.testing.assert_close(found[f"{part}.{layer}".replace(".default", "")], value)
    with pytest.raises(SystemExit, match="holds a model already"):
        cli.train(["export", "--ckpt", str(checkpoint), "--output", str(tmp_path / "new")])


def test_what_would_have_to_be_unpickled_is_not_converted(tmp_path: Path) -> None:
    for name, content in (("bad.ckpt", pickle.dumps({"state_dict": Path("x")})), ("none.ckpt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SystemExit, match="cannot be read as plain tensors"):
            cli.train(["export", "--ckpt", str(tmp_path / name), "--output", str(tmp_path / "new")])
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit, match="does not say which model"):
        cli.train(["export", "--ckpt", str(tmp_path / "other.ckpt"), "--output", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_of_full_fine_tuning_is_exported_as_a_pipeline(
    pipeline_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = TextToImageModule(str(pipeline_folder), ema_decay=None, train_text_encoder=True)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.1)
    checkpoint = {"state_dict": module.state_dict(), "callbacks": {"NeuronMasking": {}}, "global_step": 3}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with caplog.at_level(logging.WARNING, "memtrain"):
        cli.train(["export", "--ckpt", str(tmp_path / "last.ckpt"), "--output", str(tmp_path / "new")])
    assert "NeuronMasking" in caplog.text
    found = StableDiffusionPipeline.from_pretrained(tmp_path / "new")
    for ours, theirs in ((module.denoiser, found.unet), (module.text_encoder, found.text_encoder)):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["missing", "strange", "shape", "alpha", "no average", "full"])
def test_a_checkpoint_of_something_else_is_refused(kind: str, runs: Path, pipeline_folder: Path) -> None:
    state = torch.load(runs / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    weights, options = state["state_dict"], dict(OPTIONS)
    name = next(iter(weights))
    if kind == "missing":
        del weights[name]
    elif kind == "strange":
        weights["denoiser.conv_in.weight"] = torch.zeros(1)
    elif kind == "shape":
        weights[name] = weights[name][:1]
    elif kind == "alpha":
        options["alpha"] = 1
    elif kind == "no average":
        del state["ema"]
    module = TextToImageModule(str(pipeline_folder), lora=None if kind == "full" else LoRA(**options))
    with pytest.raises(ConfigurationError, match=r"The checkpoint (is of|lacks|has)"):
        module.on_load_checkpoint(state)


def test_adapters_of_another_base_model_are_refused_wherever_it_lies(
    runs: Path, pipeline_folder: Path, tmp_path: Path
) -> None:
    state = torch.load(runs / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    shutil.copytree(pipeline_folder, tmp_path / "moved")
    moved = TextToImageModule(str(tmp_path / "moved"), lora=LoRA(**OPTIONS), ema_decay=0.9)
    check_contents(moved, state)
    half = TextToImageModule(
        str(tmp_path / "moved"), lora=LoRA(**OPTIONS), ema_decay=0.9, execution=Execution(frozen_dtype="bfloat16")
    )
    check_contents(half, state)
    with torch.no_grad():
        next(value for value in moved.denoiser.parameters() if not value.requires_grad).mul_(1.1)
    with pytest.raises(ConfigurationError, match="adapters of another base model"):
        check_contents(moved, state)


def test_of_large_models_the_file_alone_is_enough(
    runs: Path, pipeline_folder: Path, tmp_path: Path, write_folder: Callable[..., Path]
) -> None:
    write_folder(12)
    run(tmp_path / "run", pipeline_folder, stop=1, adapters="lora")
    assert (tmp_path / "run" / FILE).is_file()
    assert not (tmp_path / "run" / "pipeline").exists()
    (tmp_path / "run" / "config.yaml").write_text(f"model: {{init_args: {{pretrained: '{pipeline_folder}'}}}}")
    trained = of_run(tmp_path / "run")
    assert (trained.model, trained.lora) == (str(pipeline_folder), tmp_path / "run" / FILE)
    given = f"{{path: '{pipeline_folder}', config: elsewhere, max_sequence_length: 77}}"
    (tmp_path / "run" / "config.yaml").write_text(f"model: {{init_args: {{pretrained: {given}}}}}")
    assert (of_run(tmp_path / "run").model, of_run(tmp_path / "run").config) == (str(pipeline_folder), "elsewhere")
    with pytest.raises(ConfigurationError, match="holds no trained pipeline"):
        of_run(tmp_path)


def test_a_module_without_adapters_has_none_to_save(pipeline_folder: Path, write_folder: Callable[..., Path]) -> None:
    write_folder(12)
    module = TextToImageModule(str(pipeline_folder))
    with pytest.raises(ConfigurationError, match="trains none"):
        PipelineExport(adapters="lora").setup(None, module, "fit")  # type: ignore[arg-type]
