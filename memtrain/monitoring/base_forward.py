"""The paired comparison of every n-th batch with its signal values under the base model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.monitoring.batch_fields import field_of
from memtrain.monitoring.host import Host
from memtrain.monitoring.loss_route import Handover
from memtrain.monitoring.measurement import as_in_training, completer
from memtrain.monitoring.paired_reference import PairedReference
from memtrain.monitoring.turn import Turn
from memtrain.signals.readings import Readings


class BaseForward:
    """Runs every `every`-th batch once more under the base model.

    Args:
        host: the host of the run.
        probe: the probe on the denoiser.
        readings: the signals, read together.
        paired: the weights from before training.
        every: number of batches between comparisons.
    """

    def __init__(
        self, host: Host, *, probe: DenoiserProbe, readings: Readings, paired: PairedReference, every: int
    ) -> None:
        self.host, self.probe, self.readings, self.paired, self.every = host, probe, readings, paired, every

    def values(self, turn: Turn, values: Tensor, handover: Handover | None) -> Tensor:
        """Return signal values of a batch under the base model `(B, columns)`; NaN if it is not compared.

        Args:
            turn: the turn of the batch, after the backward pass.
            values: the values of the current model.
            handover: the losses handed over, if the base model has run.
        """
        if turn.number % self.every:
            return torch.full_like(values, torch.nan)
        if handover is not None:
            assert handover.base is not None
            return self.readings.read(handover.base)
        observation = turn.observation
        with as_in_training(self.host):
            return self.paired.values(
                observation,
                self.probe,
                read=self.readings.read,
                complete=self._complete(observation),
                encode=self._encoding(turn),
                untrained=turn.step == 0,
            )

    def replay(self, observation: Observation, turn: Turn | None, *, number: int) -> Observation | None:
        """Run the forward of a batch under the base model; None if the batch is not compared.

        Args:
            observation: the observation of the forward, before its backward pass.
            turn: the turn of the batch, if it is known already.
            number: the number of the batch.
        """
        if number % self.every:
            return None
        with as_in_training(self.host):
            return self.paired.replay(
                observation,
                self.probe,
                complete=self._complete(observation),
                encode=self._encoding(turn),
                untrained=self.host.step == 0,
            )

    def _complete(self, observation: Observation) -> Callable[[Observation], None] | None:
        if observation.unconditional is None:
            return None
        return completer(self.host, probe=self.probe, signals=self.readings.signals)

    def _encoding(self, turn: Turn | None) -> Callable[[], Tensor] | None:
        """Return a function that encodes the captions of a batch once more; None if the module has none."""
        module = self.host.module
        ids = None if turn is None else field_of(turn.batch, "input_ids")
        if ids is None or not callable(getattr(module, "encode_text", None)):
            return None
        return partial(module.encode_text, ids)
