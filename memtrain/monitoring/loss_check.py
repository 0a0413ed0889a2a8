"""Whether the losses that are read from the gradient are those of the host.

Each sample's loss is recovered from the gradient at the denoiser's output (:mod:`memtrain.signals.denoising_loss`),
which is right if the host's loss is the batch mean of squared errors, weighted at most as `loss_weight(timesteps)` of
its module says. Nothing in the gradient shows when it is not: half the loss reads as a quarter, and ordinary samples
look memorized. So in the first batches of a fit the (weighted) mean of the recovered losses is compared with the loss
that is differentiated, without gradient accumulation's and the gradient scaler's factors. Mitigations change neither:
the gradient is read before samples are weighted, the loss before penalties are added.

- Where all batches disagree by more than 5 %, training is refused: with a constant factor, weights by timestep, sums,
  other losses than squared errors.
- Where only some do, there is a warning.
- A loss with further terms (a regularizer, say) is larger than the mean of the squared errors although these are
  recovered rightly. If its `training_step` returns `{"loss": loss, "sample_loss": (B,) unweighted losses}`, the
  recovered losses are compared with those, sample by sample, and the terms do not matter. Terms that act on the
  denoiser's output themselves do: then the losses cannot be recovered, and `DenoisingLoss` has to be left out.

Cost: a few means in the first eight batches. They are read with the next update of the monitor, so nothing waits for
the device. Cannot: see a loss that is differentiated by `loss.backward()` instead of `manual_backward(loss)`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.functional.diffusion import loss_from_gradient
from memtrain.models.observation import Observation
from memtrain.models.transfer import HostCopy
from memtrain.monitoring.host import Host

log = logging.getLogger(__name__)

COMPARED = 8
"""Batches that are compared."""

ENOUGH = 4
"""Batches after which training may be refused."""

TOLERANCE = 0.05
"""Relative difference that is put down to rounding; half precision stays well below it."""

REMEDY = (
    "return the plain mean; or declare what it is multiplied by, a constant too, as loss_weight(timesteps) -> (B,) on "
    'the module; or, if it has further terms, return {"loss": loss, "sample_loss": (B,) unweighted losses} from '
    "training_step, which are compared instead; or measure other `signals` than DenoisingLoss"
)


def require_loss_weight(module: Any) -> None:
    """Refuse a `loss_weight` that cannot be asked.

    Raises:
        ConfigurationError: if it is no method.
    """
    weight = getattr(module, "loss_weight", None)
    if weight is not None and not callable(weight):
        raise _refused_weight(module, f"is {weight!r}")


def loss_weights(module: Any, timesteps: Tensor) -> Tensor | None:
    """Weight of each sample's loss, `(B,)`, as the module says; None if it does not.

    Raises:
        ConfigurationError: if that is no such tensor.
    """
    weight: Any = getattr(module, "loss_weight", None)
    if weight is None:
        return None
    weights = weight(timesteps)
    if not isinstance(weights, Tensor) or weights.shape != timesteps.shape:
        found = f"one of shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else repr(weights)
        raise _refused_weight(module, f"returned {found} for {len(timesteps)} timesteps")
    return weights


def _refused_weight(module: Any, found: str) -> ConfigurationError:
    return ConfigurationError(
        f"{type(module).__name__}.loss_weight {found}",
        expected="a method loss_weight(timesteps (B,)) -> (B,) tensor, what each sample's loss is multiplied by",
        remedy="write `def loss_weight(self, timesteps): return torch.full(timesteps.shape, 0.5, device=self.device)` "
        "for a constant, or call the attribute something else",
    )


class LossCheck:
    """Compares in the first batches of a fit, decides once."""

    def __init__(self) -> None:
        self._batches, self._decided = 0, False
        self._differentiated: Tensor | None = None
        self._of_gradient: Tensor | None = None
        self._compared: list[HostCopy] = []
        self._saw = False

    @property
    def saw(self) -> bool:
        """Whether a loss was ever shown."""
        return self._saw

    @property
    def _open(self) -> bool:
        return not self._decided and self._batches < COMPARED

    def differentiates(self, loss: Tensor) -> None:
        """A backward pass from this loss begins; call before anything is added to it."""
        self._saw = True
        self._differentiated = loss.detach().clone() if self._open else None

    def gradient_arrives(self) -> None:
        """The gradient at the denoiser's output belongs to the loss named last: a host may have several."""
        self._of_gradient, self._differentiated = self._differentiated, None

    def batch_ends(self, observation: Observation, outputs: Any) -> None:
        """Compare.

        Args:
            observation: complete.
            outputs: what the training step returned, as the host passes it on.
        """
        loss, self._of_gradient, self._differentiated = self._of_gradient, None, None
        if not self._open:
            return
        self._batches += 1
        if loss is not None:
            given = outputs.get("sample_loss") if isinstance(outputs, Mapping) else None
            self._compared.append(HostCopy(_compare(observation, loss, given)))

    def decide(self, host: Host, *, over: bool = False) -> None:
        """Refuse or warn, once, when there are batches enough; call on every process alike.

        Args:
            host: the surroundings of the run.
            over: training is over, and refusing it would help nobody.

        Raises:
            ConfigurationError: if no batch agrees.
        """
        if self._decided or (self._batches < ENOUGH and not over):
            return
        self._decided = True
        rows = host.gather([tuple(copy.read().tolist()) for copy in self._compared])
        self._compared = []
        rows = [row for row in rows if math.isfinite(row[0])]
        wrong = [ratio for ratio, apart in rows if abs(ratio - 1) > TOLERANCE and not apart <= TOLERANCE]
        if rows and not wrong:
            return
        if not rows:
            message = (
                "The loss of the training step was never seen, so it is not known whether the losses read from its "
                "gradient are right. Differentiate it with manual_backward(loss)"
            )
        else:
            message = (
                f"The losses read from the gradient are not those of the loss: in {len(wrong)} of {len(rows)} batches "
                f"compared, their mean is {_range(wrong)} the loss that was differentiated"
            )
        if len(wrong) == len(rows) > 0 and not over:
            raise ConfigurationError(message, expected="a loss that is the batch mean of squared errors", remedy=REMEDY)
        if host.rank == 0:
            log.warning("%s%s", message, f". If that is not meant: {REMEDY}" if rows else "")


def _compare(observation: Observation, loss: Tensor, given: Any) -> Tensor:
    """`(2,)`: mean of the recovered losses over `loss`, and how far they are from `given`, `(B,)`, relatively."""
    assert observation.gradient is not None
    recovered = loss_from_gradient(observation.gradient, observation.loss_scale, observation.loss_weight)
    weighted = recovered if observation.loss_weight is None else recovered * observation.loss_weight
    ratio = weighted.mean() * observation.loss_scale / loss.float().mean()
    apart = torch.full_like(ratio, torch.inf)
    if isinstance(given, Tensor) and given.shape == recovered.shape:
        given = given.detach().to(recovered)
        apart = (recovered - given).abs().mean() / given.abs().mean()
    return torch.stack([ratio.reshape(()), apart.reshape(())])


def _range(ratios: list[float]) -> str:
    low, high = min(ratios), max(ratios)
    if high - low <= 0.02 * high:
        return f"{(low + high) / 2:.3g} times"
    return f"{low:.3g} to {high:.3g} times"
