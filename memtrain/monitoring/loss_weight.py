"""The factors of the samples' losses that a module declares, so that each loss can be read from the gradient.

A module declares them as a method `loss_weight(timesteps) -> (B,)` or `loss_weight(timesteps, batch) -> (B,)`. The
second parameter must have this name, and gets the batch of the training step. `timesteps` are the inputs of the
denoiser, from 0 to 1,000. The read losses are then unweighted.

| loss | weight |
|---|---|
| min-SNR and other weights by timestep | the weight |
| a constant factor, such as 1 / accumulated batches under manual optimization | that factor, for every sample |
| flow matching, mean of (v - (noise - latents))² | none, or its weighting |
| SD3 as diffusers trains it (`-sigma * prediction + noisy` against latents) | weighting * sigma², sigma = t / 1000 |
| prior preservation, mean of B/2 instances + w * mean of B/2 class images | 2 for the first half, 2 * w for the other |
| a weight in the data | `batch["weight"]` |

A visit with a weight of 0 is no evidence.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from memtrain.errors import ConfigurationError


def require_loss_weight(module: Any) -> None:
    """Refuse a `loss_weight` that is no method.

    Raises:
        ConfigurationError: if it is no method.
    """
    weight = getattr(module, "loss_weight", None)
    if weight is not None and not callable(weight):
        raise _refused_weight(module, f"is {weight!r}")


def loss_weights(module: Any, timesteps: Tensor, *, batch: Any = None) -> Tensor | None:
    """Return the weight of each sample's loss, `(B,)`, as the module declares it; None without a declaration.

    Args:
        module: the module, which may have `loss_weight(timesteps)` or `loss_weight(timesteps, batch)`.
        timesteps: the timesteps, `(B,)`.
        batch: the batch of the training step.

    Raises:
        ConfigurationError: if the method returns another kind of value.
    """
    weight: Any = getattr(module, "loss_weight", None)
    if weight is None:
        return None
    weights = weight(timesteps, batch=batch) if _takes_batch(weight) else weight(timesteps)
    if not isinstance(weights, Tensor) or weights.shape != timesteps.shape:
        found = f"one of shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else repr(weights)
        raise _refused_weight(module, f"returned {found} for {len(timesteps)} timesteps")
    return weights.detach().to(timesteps.device)


def _takes_batch(weight: Any) -> bool:
    try:
        return "batch" in inspect.signature(weight).parameters
    except (TypeError, ValueError):
        return False


def _refused_weight(module: Any, found: str) -> ConfigurationError:
    return ConfigurationError(
        f"{type(module).__name__}.loss_weight {found}",
        expected="a method loss_weight(timesteps (B,)) -> (B,) tensor of the factors of each sample's loss; it may "
        "have a second parameter named `batch`",
        remedy="write `def loss_weight(self, timesteps): return torch.full(timesteps.shape, 0.5, device=self.device)` "
        "for a constant, or rename the attribute",
    )
