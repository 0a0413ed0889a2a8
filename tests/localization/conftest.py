"""The planted model of these tests, made once."""

from __future__ import annotations

import pytest

from memtrain.localization.predictor import Predictor
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics

from .planted import plant, planted_predictor, planted_unet

OTHERS = [f"other {index}" for index in range(40)]
FEW = {"seeds": 4, "initial_theta": 3.0, "theta_step": 0.5}
"""Settings that keep a search on the planted model short."""
THRESHOLD = 0.7


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    """Of a UNet with three searched layers and 8 x 8 latents."""
    unet = planted_unet(size=8, small=True)
    plant(unet)
    return planted_predictor(unet, size=8)


@pytest.fixture(scope="session")
def statistics(predictor: Predictor) -> ActivationStatistics:
    return ActivationStatistics.measure(predictor, OTHERS)


@pytest.fixture
def settings() -> Settings:
    return Settings(**FEW)
