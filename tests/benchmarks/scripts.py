"""The scripts in `benchmarks/`, which import each other as neighbours."""

from __future__ import annotations

import importlib
from types import ModuleType


class Modules:
    """Each script as an attribute."""

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(name)
