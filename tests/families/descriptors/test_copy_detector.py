"""A detector from a file: what it is shown, and its version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from memtrain.errors import ConfigurationError
from memtrain.families.descriptors import copy_detector
from memtrain.families.descriptors.copy_detector import CopyDetector
from memtrain.families.network_file import Network, trust_scripts
from tests.evaluation.conftest import save_script


@pytest.fixture(autouse=True)
def trusted() -> Iterator[None]:
    trust_scripts()
    yield
    trust_scripts(False)


class MeanColour(nn.Module):
    """The mean of every channel."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def test_images_are_normalised_as_for_imagenet(tmp_path: Path) -> None:
    save_script(MeanColour(), tmp_path / "network.pt")
    found = CopyDetector(str(tmp_path / "network.pt"), size=8).describe([Image.new("RGB", (5, 9), (255, 0, 0))])
    expected = np.array([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), rtol=1e-5)


def test_a_network_that_takes_pixels_gets_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = []

    def run(images: Tensor) -> Tensor:
        shown.append((images.dtype, images.shape, images[0, :, 0, 0].tolist()))
        return images.float().mean(dim=(2, 3))

    monkeypatch.setattr(copy_detector, "load_network", lambda path, device: Network(run, takes_pixels=True))
    (tmp_path / "network.onnx").write_bytes(b"weights")
    CopyDetector(str(tmp_path / "network.onnx")).describe([Image.new("RGB", (5, 9), (255, 7, 0))])
    assert shown == [(torch.uint8, (1, 3, 224, 224), [255, 7, 0])]


def test_the_version_follows_the_file_and_the_size(tmp_path: Path) -> None:
    save_script(MeanColour(), tmp_path / "one.pt")
    save_script(nn.Sequential(MeanColour(), nn.Identity()), tmp_path / "other.pt")
    made = [("one", 8), ("one", 16), ("other", 8)]
    versions = {CopyDetector(str(tmp_path / f"{name}.pt"), size=size).version for name, size in made}
    assert len(versions) == 3
    assert CopyDetector(str(tmp_path / "one.pt"), size=8).version in versions


def test_no_file_and_no_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        CopyDetector(str(tmp_path / "none.onnx"))
    with pytest.raises(ConfigurationError, match="size"):
        CopyDetector(str(tmp_path / "none.onnx"), size=0)
