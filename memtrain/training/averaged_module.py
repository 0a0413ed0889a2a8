"""A LightningModule that keeps an average of its trained weights, validates it and lends it to callbacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.training_utils import EMAModel
from lightning.pytorch import LightningModule
from torch import nn


class AveragedModule(LightningModule):
    """A module that may keep an average of its weights.

    Attributes:
        ema: the average; None for no average.
    """

    ema: EMAModel | None = None

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weight average with each optimizer step, so that a checkpoint of this step holds it."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.step(self.trained())

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the context the module holds the averaged weights, if it keeps an average."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.trained())
        self.ema.copy_to(self.trained())
        try:
            yield
        finally:
            self.ema.restore(self.trained())

    def on_validation_epoch_start(self) -> None:
        """Validate the averaged weights."""
        self._averaged = self.averaged_weights()
        self._averaged.__enter__()

    def on_validation_epoch_end(self) -> None:
        """Go back to the live weights."""
        self._averaged.__exit__(None, None, None)
