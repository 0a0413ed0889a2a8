"""The base of all callbacks that a YAML file can name.

Lightning exists as `lightning.pytorch` and as `pytorch_lightning`, two packages with the same code. The trainers of
both packages call callbacks of both, but `LightningCLI` of the second accepts its own callbacks only. So callbacks
derive from the base classes of both if `pytorch_lightning` is already imported. A script that needs this imports it
before memtrain.
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
