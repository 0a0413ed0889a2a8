"""The base of everything that a YAML can name among the trainer's callbacks.

Lightning exists as `lightning.pytorch` and as `pytorch_lightning`, two packages with one code. The trainer of either
calls callbacks of both, but `LightningCLI` of the second accepts its own only. So where `pytorch_lightning` is already
imported, callbacks derive from the base classes of both; a script that needs this imports it before memtrain.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lightning.pytorch import Callback as LightningCallback

if TYPE_CHECKING or "pytorch_lightning" not in sys.modules:

    class Callback(LightningCallback):
        """A callback of `lightning.pytorch`."""

else:

    class Callback(LightningCallback, sys.modules["pytorch_lightning"].Callback):
        """A callback of both packages."""
