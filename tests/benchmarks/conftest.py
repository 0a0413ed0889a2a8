"""The scripts in `benchmarks/` can be imported."""

from __future__ import annotations

import pytest

from tests.benchmarks.scripts import Modules
from tests.conftest import ROOT


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Modules:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return Modules()
