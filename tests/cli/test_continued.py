"""What `--ckpt_path` may name: refused in one line, by what it is, before a model is loaded."""

import os
from pathlib import Path

import pytest
import torch

from memtrain.cli import training
from memtrain.cli.continued import require_checkpoint
from memtrain.errors import ConfigurationError

WHOLE = {
    "state_dict": {"weight": torch.ones(3)},
    "loops": {"fit_loop": {}},
    "optimizer_states": [{"state": {}}],
    "lr_schedulers": [],
}


class Acting:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("was-unpickled",)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    torch.save(WHOLE, tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path


@pytest.mark.parametrize("given", [None, "last", "best", "hpc", "checkpoints/last.ckpt", Path("checkpoints/last.ckpt")])
def test_a_checkpoint_of_a_training_is_accepted(folder, given):
    require_checkpoint(given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; there are last.ckpt"),
        ("folder", "is a folder"),
        (b"", "is cut off, or no checkpoint: 0 bytes"),
        ("half", "is cut off, or no checkpoint"),
        (Acting(), "cannot be read as plain tensors and numbers: UnpicklingError"),
        (torch.ones(2), "holds a Tensor"),
        ({"model": 1, "epoch": 2}, "was not written by a training: it holds model, epoch"),
        ({**WHOLE, "optimizer_states": []}, "holds weights alone (save_weights_only)"),
    ],
)
def test_anything_else_is_refused_by_what_it_is(folder, content, message):
    path = Path("checkpoints") / "odd.ckpt"
    if content == "folder":
        path.mkdir()
    elif content == "half":
        whole = Path("checkpoints/last.ckpt").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ConfigurationError) as caught:
        require_checkpoint(path)
    assert f"--ckpt_path {path} {message}" in caught.value.problem
    assert "\n" not in caught.value.problem
    assert not Path("was-unpickled").exists()


def test_a_folder_of_a_run_names_its_checkpoints(folder):
    with pytest.raises(ConfigurationError, match=r"is a folder; there are checkpoints/last\.ckpt"):
        require_checkpoint(folder)


def test_the_command_line_refuses_before_it_loads_a_model(folder, monkeypatch):
    monkeypatch.setattr(
        "memtrain.training.text_to_image.load_trainable", lambda *_, **__: pytest.fail("loads a model first")
    )
    config = Path(__file__).parents[2] / "configs" / "tiny.yaml"
    monkeypatch.setattr("sys.argv", ["train.py", "fit", "--config", str(config), "--ckpt_path", "missing.ckpt"])
    with pytest.raises(SystemExit) as caught:
        training.train()
    assert str(caught.value.code).startswith("ConfigurationError: --ckpt_path missing.ckpt does not exist")
