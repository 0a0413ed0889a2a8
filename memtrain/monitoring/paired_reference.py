"""The base model on the very same noise: the reference for data that cannot be measured before training.

Every so often a batch runs once more, without gradients, under the weights that training began with: same latents,
same timestep, same noise. That is a closer comparison than a profile, whose noise and timesteps are its own, for fewer
visits. Nothing is measured before training and nothing is cached, so data may be streamed or too large for a profile.

The weights of the beginning are a copy of the denoiser's trainable parameters, exchanged for the running ones during
that forward. In LoRA training these are the adapters, which begin as no change at all: the adapter is switched off, and
the copy is as small as it is. In full fine-tuning it is one more copy of the weights on the device.

Cost: a forward pass each time, and a second one for held-out samples; with every fourth batch a training step of the
embedded example takes about 1.2 times as long (benchmarks/RESULTS.md). Suggested: every fourth to eighth batch.
Cannot: undo a text encoder that is trained along (the base model reads the embeddings as they are), or sharded
parameters (FSDP).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from memtrain.errors import ConfigurationError
from memtrain.functional.diffusion import per_sample_mse, residual_from_gradient
from memtrain.models.backbones.base import unwrap
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe


class PairedReference:
    """The parameters that training began with.

    Args:
        denoiser: wrapped (torch.compile, PEFT, DDP) or not, before any training step and before a checkpoint is loaded.

    Raises:
        ConfigurationError: if it has no trainable parameter.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        trained = _trained(denoiser)
        if not trained:
            raise ConfigurationError(
                f"{type(denoiser).__name__} has no trainable parameter",
                expected="a denoiser that is trained",
                remedy="inject adapters before training starts (in the module's __init__, setup or configure_model)",
            )
        self._start = {name: value.detach().clone() for name, value in trained.items()}

    @contextmanager
    def base_weights(self, denoiser: nn.Module) -> Iterator[None]:
        """Within the context, `denoiser`, wrapped or not, has the parameters of the beginning."""
        trained = _trained(denoiser)
        if trained.keys() != self._start.keys():
            changed = sorted(trained.keys() ^ self._start.keys())
            raise ConfigurationError(
                f"{len(changed)} trainable parameters appeared or went since training was set up, first {changed[0]!r}",
                expected="adapters that are there from the beginning",
                remedy="inject adapters, and freeze parameters, in the module's __init__, setup or configure_model",
            )
        running = {name: value.data for name, value in trained.items()}
        for name, value in trained.items():
            # `precision: bf16-true` converts the module after it was set up.
            self._start[name] = self._start[name].to(value)
            value.data = self._start[name]
        try:
            yield
        finally:
            for name, value in trained.items():
                value.data = running[name]

    def values(
        self,
        observation: Observation,
        probe: DenoiserProbe,
        *,
        read: Callable[[Observation], Tensor],
        complete: Callable[[Observation], None] | None = None,
    ) -> Tensor:
        """Signal values of a training batch under the base model, `(B, columns)`.

        Args:
            observation: complete, of a probe that keeps calls.
            probe: the same one.
            read: signal values of an observation.
            complete: adds to the observation what the signals need beside the one forward.
        """
        assert observation.prediction is not None
        assert observation.gradient is not None
        base = self.replay(observation, probe, complete=complete)
        assert base.prediction is not None

        def predicted(output: Tensor) -> Tensor:
            return probe.backbone.prediction_gradient(probe.denoiser, output)

        residual = residual_from_gradient(observation.gradient, observation.loss_scale, observation.loss_weight)
        target = predicted(observation.prediction).float() - residual
        base.sample_loss = per_sample_mse(predicted(base.prediction), target)
        return read(base)

    def replay(
        self,
        observation: Observation,
        probe: DenoiserProbe,
        *,
        complete: Callable[[Observation], None] | None = None,
    ) -> Observation:
        """What the probe sees of the same forward under the base model; arguments as of :meth:`values`."""
        assert observation.call is not None
        args, kwargs = observation.call
        # A host may name its samples later.
        keys = list(observation.keys) or [""] * len(observation.noisy_latents)
        base = Observation(keys, observation.prompt_length, observation.prompt_mask)
        with self.base_weights(probe.denoiser), torch.no_grad():
            with probe.measure(base):
                probe.host(*args, **kwargs)
            if complete is not None:
                complete(base)
        return base


def _trained(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by the names that they have without wrappers."""
    return {name: value for name, value in unwrap(denoiser).named_parameters() if value.requires_grad}
