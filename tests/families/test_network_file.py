"""Networks from files: which input they take, and what is refused."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from memtrain.errors import ConfigurationError
from memtrain.families.network_file import load_network, trust_scripts
from tests.evaluation.conftest import save_script


@pytest.fixture(autouse=True)
def trusted() -> Iterator[None]:
    trust_scripts()
    yield
    trust_scripts(False)


class MeanColour(nn.Module):
    """The mean of every channel."""

    def forward(self, images: Tensor, loudly: bool = False) -> Tensor:
        return images.mean(dim=(2, 3)) * (10.0 if loudly else 1.0)


def onnxruntime(kind: str, shape: list[object]) -> SimpleNamespace:
    """A package whose sessions answer with the mean over all axes of the image but that of channels."""

    class InferenceSession:
        def __init__(self, path: str, options: object, providers: list[str]) -> None:
            if Path(path).read_bytes() == b"broken":
                raise ValueError("no protobuf")

        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="image", type=kind, shape=shape)]

        def run(self, _: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            images = given["image"]
            assert str(images.dtype) in kind.replace("float", "float32")
            axes = (1, 2) if shape[3] == 3 else (2, 3)
            return [images.mean(axis=axes).astype(np.float32)]

    return SimpleNamespace(InferenceSession=InferenceSession, SessionOptions=SimpleNamespace)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    def install(kind: str, shape: list[object]) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            "memtrain.families.network_file.find_spec", lambda name: True if name == "onnxruntime" else find(name)
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime(kind, shape))

    return install


def test_a_script_answers_and_is_asked_for_what_it_has(tmp_path: Path) -> None:
    save_script(MeanColour(), tmp_path / "network.pt")
    ones = torch.ones(1, 3, 2, 2)
    assert load_network(tmp_path / "network.pt")(ones).tolist() == [[1.0, 1.0, 1.0]]
    assert load_network(tmp_path / "network.pt", ask_for="loudly")(ones).tolist() == [[10.0, 10.0, 10.0]]
    assert load_network(tmp_path / "network.pt", ask_for="other")(ones).tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"),
    [
        ("tensor(uint8)", ["batch", "height", "width", 3], torch.uint8),
        ("tensor(float)", ["batch", 3, 224, 224], torch.float32),
    ],
)
def test_onnx_gets_what_its_input_says(installed, tmp_path: Path, kind: str, shape: list, dtype: torch.dtype) -> None:
    installed(kind, shape)
    (tmp_path / "network.onnx").write_bytes(b"")
    network = load_network(tmp_path / "network.onnx")
    images = torch.arange(3).view(1, 3, 1, 1).expand(2, 3, 4, 5).to(dtype)
    assert network(images).tolist() == [[0, 1, 2]] * 2
    assert network.takes_pixels == (dtype == torch.uint8)
    with pytest.raises(ConfigurationError, match="takes"):
        network(images.to(torch.float32 if dtype == torch.uint8 else torch.uint8))


def test_what_is_no_network_is_refused(installed, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_network(tmp_path / "none.pt")
    (tmp_path / "wrong.pt").write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match="not a TorchScript archive"):
        load_network(tmp_path / "wrong.pt")
    installed("tensor(float)", [1, 3, 4, 4])
    (tmp_path / "wrong.onnx").write_bytes(b"broken")
    with pytest.raises(ConfigurationError, match="no protobuf"):
        load_network(tmp_path / "wrong.onnx")


def test_onnx_needs_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("memtrain.families.network_file.find_spec", lambda name: None)
    (tmp_path / "network.onnx").write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match="pip install onnxruntime"):
        load_network(tmp_path / "network.onnx")


def test_a_script_is_a_program_and_needs_a_word(tmp_path: Path) -> None:
    save_script(MeanColour(), tmp_path / "network.pt")
    trust_scripts(False)
    with pytest.raises(ConfigurationError, match="a program that runs when it is loaded") as refused:
        load_network(tmp_path / "network.pt")
    assert "--trust torchscript" in str(refused.value)
    assert load_network(tmp_path / "network.pt", trusted=True)(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
