"""A random denoiser that has to be left as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import nn

from tests.conformance.families import build
from tests.conformance.probe_oracle import assert_no_hooks


@pytest.fixture
def model(family: str) -> Iterator[nn.Module]:
    model = build(family)
    yield model
    assert_no_hooks(model)
