"""The loss of each sample as the host computes it, with any criterion and any weights.

The host's loss is the batch mean of `weight * sample_loss`, and a sample's loss is the mean of its elements. The shape
of weights decides whether they belong to samples or to elements. A sample's loss is kept without its weight, so that
visits can be compared. Weights of elements (masks) are part of the loss.

Cannot: read a loss that is already averaged over the batch, or whose samples depend on each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError

Criterion: TypeAlias = str | Callable[[Tensor, Tensor], Tensor]
"""A name in :data:`CRITERIA`, or a function that gives elementwise losses `(B, ...)` or each sample's loss `(B,)`."""

CRITERIA: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "smooth_l1": F.smooth_l1_loss,
}


def sample_losses(
    prediction: Tensor, target: Tensor, *, criterion: Criterion = "mse", weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return each sample's loss, in fp32 or better.

    Args:
        prediction: the prediction `(B, ...)`.
        target: the target, of the same shape.
        criterion: the loss of both.
        weights: weights of samples, `(B,)` or `(B, 1, ...)`, or of elements in a shape that fits `prediction`; None
            for equal weights.

    Returns:
        The losses `(B,)` with a graph and without the weights of samples, and these weights `(B,)` or None.

    Raises:
        ConfigurationError: if the criterion is unknown or gives no loss for each sample.
        DataError: if shapes do not fit.
    """
    for name, given in {"prediction": prediction, "target": target, "weights": weights}.items():
        if not isinstance(given, Tensor) and not (name == "weights" and given is None):
            raise DataError(
                f"The {name} given to loss(...) is a {type(given).__name__}",
                expected="a tensor",
                remedy="pass torch.as_tensor(...) for numbers, or the tensor in an output (.sample)",
            )
    count = len(prediction)
    if isinstance(criterion, str) and prediction.shape != target.shape:
        raise DataError(
            f"The prediction has the shape {tuple(prediction.shape)}, the target {tuple(target.shape)}",
            expected="the same shape for both",
            remedy="pass the rows of prediction and target that belong together",
        )
    losses = _computed(criterion, *(_exact(part) for part in (prediction, target)))
    if not isinstance(losses, Tensor) or losses.dim() == 0 or len(losses) != count:
        gave = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ConfigurationError(
            f"The criterion gave {gave} for {count} samples",
            expected="elementwise losses (B, ...), or each sample's loss (B,)",
            remedy='leave the mean to guard.loss(...), for instance with reduction="none" in a function of torch',
        )
    factor = None
    if weights is not None:
        factor, elements = _split(weights.to(losses), losses)
        losses = losses if elements is None else elements * losses
    return (losses if losses.dim() == 1 else losses.flatten(1).mean(1)), factor


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _computed(criterion: Criterion, prediction: Tensor, target: Tensor) -> Tensor:
    if callable(criterion):
        return criterion(prediction, target)
    if criterion not in CRITERIA:
        raise ConfigurationError(
            f"criterion={criterion!r}",
            expected=f"one of {sorted(CRITERIA)}, or a function of prediction and target",
            remedy="pass a function that gives elementwise losses",
        )
    return CRITERIA[criterion](prediction, target, reduction="none")


def _split(weights: Tensor, losses: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return weights of samples `(B,)` and weights of elements that fit `losses`; one of them is None."""
    count = len(losses)
    if weights.dim() == 0:
        return weights.expand(count), None
    if weights.numel() == count == len(weights):
        return weights.reshape(count), None
    try:
        fits = torch.broadcast_shapes(weights.shape, losses.shape) == losses.shape
    except RuntimeError:
        fits = False
    if not fits or losses.dim() == 1:
        raise DataError(
            f"Weights of the shape {tuple(weights.shape)} do not fit losses of the shape {tuple(losses.shape)}",
            expected=f"({count},) weights of samples, or weights of elements",
            remedy="give each sample of this prediction a weight, or multiply elements inside the criterion",
        )
    return None, weights
