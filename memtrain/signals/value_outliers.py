"""Value outliers, the largest z-score of a caption's value neurons at each site. High means memorized.

Source: the first stage of NeMo (Hintersdorf et al., "Finding NeMo", NeurIPS 2024, section 3.2), which takes the value
neurons whose mean activation for a prompt lies many standard deviations from its mean over reference prompts. Here the
captions of training and held-out samples under the base model are the reference prompts. The largest z-score of a
caption is compared with its largest z-score under the base model.

Cost: one more projection of the text per site, and before training one more forward pass per sample. Training needs no
extra forward. Cannot: see anything if the text encoder and the value projections are frozen (LoRA on queries and keys
only), because a value neuron sees the text alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError, ProbeError
from memtrain.functional.moments import Moments
from memtrain.functional.neurons import neuron_z_score
from memtrain.models.observation import Observation
from memtrain.signals.base import FittedSignal


class ValueOutliers(FittedSignal):
    """Largest z-score among the value neurons of each site, `(B, S)`; compared as a difference."""

    name = "value_outliers"
    memorized_when = "high"
    resolution = 0.1
    needs_neurons = True

    def __init__(self) -> None:
        self.mean: dict[str, Tensor] = {}
        self.std: dict[str, Tensor] = {}

    def columns(self, sites: Sequence[str]) -> list[str]:
        """`value_outliers.<site>` for each site."""
        return [f"{self.name}.{site}" for site in sites]

    def fit(self, observations: Iterable[Observation]) -> None:
        """Compute the mean and the unbiased standard deviation of every neuron over the observed captions.

        Raises:
            ConfigurationError: if there are fewer than two captions.
        """
        seen: dict[str, Moments] = {}
        for observation in observations:
            for site, activation in observation.neuron_activation.items():
                found = Moments.of(activation)
                seen[site] = seen[site].merge(found) if site in seen else found
        count = next((int(moments.count) for moments in seen.values()), 0)
        if count < 2:
            raise ConfigurationError(
                f"value_outliers saw {count} reference captions",
                expected="at least 2, and usually hundreds",
                remedy="use more training samples, or leave this signal out",
            )
        self.mean = {site: moments.mean.float() for site, moments in seen.items()}
        self.std = {site: moments.std.float() for site, moments in seen.items()}

    def __call__(self, observation: Observation) -> Tensor:
        """Return the largest z-score of each site against the reference captions."""
        if not self.mean:
            raise ProbeError("value_outliers was not fitted", remedy="call fit() with reference captions first")
        for statistics in (self.mean, self.std):
            for site, activation in observation.neuron_activation.items():
                statistics[site] = statistics[site].to(activation.device)
        largest = [
            neuron_z_score(activation, self.mean[site], self.std[site]).amax(dim=1)
            for site, activation in observation.neuron_activation.items()
        ]
        return torch.stack(largest, dim=1)

    def relative(self, values: Tensor, reference: Tensor) -> Tensor:
        """Change since the base model."""
        return values - reference

    def absolute(self, values: Tensor) -> Tensor:
        """The largest z-score itself."""
        return values

    def state_dict(self) -> dict[str, Any]:
        """Statistics of the reference captions."""
        parts = {"mean": self.mean, "std": self.std}
        return {name: {site: value.cpu() for site, value in part.items()} for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state."""
        self.mean, self.std = dict(state["mean"]), dict(state["std"])
