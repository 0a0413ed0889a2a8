"""Features of a trained network, and what is said when it is absent."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from memtrain.errors import ConfigurationError
from memtrain.families.descriptors import efficientnet_lite0
from memtrain.families.descriptors.efficientnet_lite0 import EfficientNetFeatures, EfficientNetLite0


def test_features_are_those_of_the_trained_network() -> None:
    """The officer in matplotlib's sample picture wears ImageNet's class 652, military uniform."""
    network = EfficientNetLite0()
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as picture:
        pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)[None]
    features = network(pixels)
    assert features.shape == (1, 1280)
    logits = network.network(network.prepare(pixels))
    assert int(logits.argmax()) == 652
    torch.testing.assert_close(network.network._fc(features), logits)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_are_read_without_running_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: seen.append(kwargs) or load(*args, **kwargs))
    EfficientNetLite0()
    assert [kwargs["weights_only"] for kwargs in seen] == [True]


def test_its_features_are_those_at_unit_length() -> None:
    image = Image.new("RGB", (224, 224), (200, 30, 90))
    features = EfficientNetLite0()(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None])
    expected = torch.nn.functional.normalize(features, dim=1)
    np.testing.assert_allclose(EfficientNetFeatures().describe([image]), expected, atol=1e-5)


def test_without_the_extra_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite0, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="quality"):
        EfficientNetFeatures()
