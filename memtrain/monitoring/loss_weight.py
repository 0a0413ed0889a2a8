"""What a module says its loss multiplies each sample by, so that each sample's loss can be read from the gradient.

A module declares it as a method `loss_weight(timesteps) -> (B,)`, or `loss_weight(timesteps, batch) -> (B,)`, where the
second parameter has this name and gets what the training step gets. `timesteps` are what the denoiser was given, from 0
to 1,000. The losses that are read are then the unweighted ones.

| loss | weight |
|---|---|
| min-SNR and other weights by timestep | the weight |
| a constant factor, such as 1 / accumulated batches under manual optimization | that factor, for every sample |
| flow matching, mean of (v - (noise - latents))² | none, or its weighting |
| SD3 as diffusers trains it (`-sigma * prediction + noisy` against latents) | weighting * sigma², sigma = t / 1000 |
| prior preservation, mean of B/2 instances + w * mean of B/2 class images | 2 for the first half, 2 * w for the other |
| a weight in the data | `batch["weight"]` |

A weight of 0 makes the visit no evidence.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from memtrain.errors import ConfigurationError


def require_loss_weight(module: Any) -> None:
    """Refuse a `loss_weight` that cannot be asked.

    Raises:
        ConfigurationError: if it is no method.
    """
    weight = getattr(module, "loss_weight", None)
    if weight is not None and not callable(weight):
        raise _refused_weight(module, f"is {weight!r}")


def loss_weights(module: Any, timesteps: Tensor, *, batch: Any = None) -> Tensor | None:
    """Weight of each sample's loss, `(B,)`, as the module says; None if it does not.

    Args:
        module: perhaps with `loss_weight(timesteps)` or `loss_weight(timesteps, batch)`.
        timesteps: `(B,)`.
        batch: as the training step gets it.

    Raises:
        ConfigurationError: if that is no such tensor.
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
        expected="a method loss_weight(timesteps (B,)) -> (B,) tensor, what each sample's loss is multiplied by; it "
        "may have a second parameter named `batch`",
        remedy="write `def loss_weight(self, timesteps): return torch.full(timesteps.shape, 0.5, device=self.device)` "
        "for a constant, or call the attribute something else",
    )
