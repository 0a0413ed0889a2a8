"""Each sample's loss, in hosts whose code nobody touches: handed over, or read from the gradient and checked.

There are two ways to know it.

- **Handed over.** The training step returns `{"loss": loss, "sample_loss": (B,) each sample's loss, unweighted}`. That
  is believed and used, whatever the loss is made of: Huber, masks, weights, further terms. Only its form is checked:
  one number per sample, not negative, not the same for all.
- **Read from the gradient** at the denoiser's output (:mod:`memtrain.signals.denoising_loss`), which is right if the
  loss is the batch mean of squared errors, weighted at most as the module's `loss_weight` says
  (:mod:`memtrain.monitoring.loss_weight`).

Nothing in the gradient shows when the second is wrong: half the loss reads as a quarter, and ordinary samples look
memorized. So it is checked in every batch, and what cannot be read is refused:

- the (weighted) mean of the losses that were read is the loss that was differentiated, within 2 %, in *every* batch.
  Weights such as min-SNR are 1 at most timesteps, and L1 agrees by chance now and then, so some batches that agree say
  nothing;
- the elements of a sample's gradient are not all of one size, as those of L1 are, which is a sign;
- no sample's gradient is zero unless `loss_weight` says so, and no part of an image is without one, as with a mask.

Mitigations change none of that: the gradient is read before samples are weighted, the loss before penalties are added.
In the first batches the processes decide at once, later with each update, before the batches become evidence. So no
flag, and no weight that rests on one, comes from a loss that was not checked.

Some things read the gradient even where losses are handed over, because they act before the step returns, or need what
the prediction is compared with: mitigations that weight samples by their loss (`LossSkipping`), and `reference:
paired`. These need a loss that can be read, too. For `paired` the step may return `target`, the `(B, ...)` tensor that
the denoiser's output should be, as well; the losses compared are then mean squared errors. Of masked losses it returns
`loss_mask` beside it, of the same shape, and the mean is over what that shows.

Cost: a few means per batch; nothing waits for the device after the first eight batches. Cannot: see a loss that is
differentiated by `loss.backward()` instead of `manual_backward(loss)`, which is refused; notice that losses are handed
over in another order than the batch's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.functional.diffusion import loss_from_gradient, per_sample_mse
from memtrain.models.observation import Observation
from memtrain.models.transfer import HostCopy
from memtrain.monitoring.host import Host
from memtrain.monitoring.loss_verdict import GIVEN, HAND_OVER, READ, verdict

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Batches that are decided on as soon as they are over."""

FLAT = 0.01
"""Spread of the sizes of a gradient's elements, over their mean, below which they are all one size."""


class LossCheck:
    """Takes the losses that a host hands over, and checks those that are read from its gradient.

    Args:
        early: mitigations that need each sample's loss before the training step returns.
        paired: whether the base model is compared on the same noise.
        predicted: what a step's `target` belongs to in the denoiser's output; default all of it.
    """

    def __init__(
        self, *, early: Sequence[str] = (), paired: bool = False, predicted: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.early, self.paired, self._predicted = list(early), paired, predicted or (lambda output: output)
        self.batches = 0
        self._differentiated: Tensor | None = None
        self._of_gradient: Tensor | None = None
        self._compared: list[HostCopy] = []
        self._saw = False

    @property
    def saw(self) -> bool:
        """Whether a loss was ever shown."""
        return self._saw

    def differentiates(self, loss: Tensor) -> None:
        """A backward pass from this loss begins; call before anything is added to it."""
        self._saw = True
        self._differentiated = loss.detach().clone()

    def gradient_arrives(self) -> None:
        """The gradient at the denoiser's output belongs to the loss named last: a host may have several."""
        self._of_gradient, self._differentiated = self._differentiated, None

    def forget(self) -> None:
        """The batch is no visit."""
        self._of_gradient, self._differentiated = None, None

    def batch_ends(self, observation: Observation, outputs: Any) -> None:
        """Put what the step hands over into the observation, and compare.

        Args:
            observation: complete. With a `sample_loss` already, nothing is left to find out.
            outputs: what the training step returned, as the host passes it on.

        Raises:
            ConfigurationError: if what it hands over has another form, or the loss was never seen.
        """
        loss, known = self._of_gradient, observation.sample_loss is not None
        self.forget()
        self.batches += 1
        if known:
            return
        given = _handed_over(observation, outputs)
        readers = [*self.early, *(["`reference: paired`"] if self.paired and observation.target is None else [])]
        if observation.target is not None and self.paired and observation.prediction is not None:
            prediction = self._predicted(observation.prediction)
            given = per_sample_mse(prediction, observation.target, mask=observation.loss_mask)
        observation.sample_loss = given
        if given is not None and not readers:
            self._compared.append(HostCopy(_form(given)))
            return
        if loss is None and given is None:
            raise ConfigurationError(
                "The loss of the training step was never seen, so it is not known whether the losses read from its "
                "gradient are right",
                expected="self.manual_backward(loss), through which Lightning tells callbacks of it",
                remedy=f"write self.manual_backward(loss) in place of loss.backward(); or {HAND_OVER}",
            )
        self._compared.append(HostCopy(_compare(observation, loss, given)))

    def decide(self, host: Host, *, over: bool = False) -> None:
        """Refuse what cannot be read; call on every process alike.

        Args:
            host: the surroundings of the run.
            over: training is over, and refusing it would help nobody.

        Raises:
            ConfigurationError: if one batch of one process says so.
        """
        rows = host.gather([tuple(copy.read().tolist()) for copy in self._compared])
        self._compared = []
        found = verdict(rows, [*self.early, *(["`reference: paired`"] if self.paired else [])])
        if found is None:
            return
        message, expected, remedy = found
        if not over:
            raise ConfigurationError(message, expected=expected, remedy=remedy)
        if host.rank == 0:
            log.warning("%s: the flags of this run may be wrong. Expected: %s. Remedy: %s", message, expected, remedy)


def _handed_over(observation: Observation, outputs: Any) -> Tensor | None:
    """`sample_loss` of what the step returned, `(B,)`, None if it has none; the observation takes `target` and mask."""
    if not isinstance(outputs, Mapping):
        return None
    count, given, target = len(observation.keys), outputs.get("sample_loss"), outputs.get("target")
    mask = outputs.get("loss_mask")
    if given is not None and not (isinstance(given, Tensor) and given.shape == (count,) and given.is_floating_point()):
        raise ConfigurationError(
            f"training_step returned {_shown(given)} as sample_loss for {count} samples",
            expected="a tensor (B,) of each sample's own loss, not their mean",
            remedy="return for instance (prediction - target).square().flatten(1).mean(1).detach()",
        )
    assert observation.gradient is not None
    if isinstance(target, Tensor) and target.shape == observation.gradient.shape:
        observation.target = target.detach()
        if isinstance(mask, Tensor) and mask.shape == target.shape:
            observation.loss_mask = mask.detach()
        elif mask is not None:
            raise ConfigurationError(
                f"training_step returned {_shown(mask)} as loss_mask",
                expected=f"a tensor of the shape of target, {tuple(target.shape)}",
                remedy="expand the mask to that shape, or leave target and loss_mask out",
            )
    elif target is not None and given is None:
        raise ConfigurationError(
            f"training_step returned {_shown(target)} as target",
            expected=f"a tensor of the shape of the denoiser's output, {tuple(observation.gradient.shape)}",
            remedy="return what the output itself is compared with, or leave `target` out",
        )
    return None if given is None else given.detach().to(observation.gradient.device)


def _shown(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _form(losses: Tensor) -> Tensor:
    """Of losses that were handed over `(B,)`: whether they are finite, and whether they cannot be what they should."""
    losses = losses.float()
    finite = losses.isfinite()
    same = (losses == losses[0]).all() & (len(losses) > 1) & finite.all()
    broken = torch.where((losses < 0).any(), 1.0, torch.where(same, 2.0, 0.0))
    nothing = torch.zeros_like(broken)
    return torch.stack([nothing + GIVEN, finite.any().float(), *[nothing] * 5, broken])


def _compare(observation: Observation, loss: Tensor | None, given: Tensor | None) -> Tensor:
    """Of losses that were read: how they go with the loss, with those handed over, and what the gradient looks like."""
    gradient, weight = observation.gradient, observation.loss_weight
    assert gradient is not None
    unweighted = torch.ones(len(gradient), device=gradient.device) if weight is None else weight.float()
    read = loss_from_gradient(gradient, observation.loss_scale, weight)
    weighed = torch.where(unweighted > 0, read * unweighted, 0.0)
    unknown = torch.full_like(read[0], torch.nan)
    ratio = unknown if loss is None else weighed.mean() * observation.loss_scale / loss.to(read).mean()
    apart = torch.full_like(unknown, torch.inf)
    if given is not None:
        counts = unweighted > 0
        apart = torch.where(counts, (read - given).abs(), 0.0).sum() / torch.where(counts, given.abs(), 0.0).sum()
    size = gradient.float().abs()
    each = size.flatten(1)
    silent = (each.amax(1) == 0) & (unweighted > 0)
    flat = (each.std(1) <= FLAT * each.mean(1)) | silent
    # Channels come first in images and last in sequences of patches.
    unseen = [(size.amax(dim) == 0).reshape(len(size), -1).float().mean(1) for dim in (1, -1)]
    masked = torch.stack(unseen).amax(0)
    masked = torch.where(each.amax(1) == 0, 0.0, masked).amax()
    parts = [
        torch.zeros_like(unknown) + READ,
        read.isfinite().any(),
        ratio,
        apart,
        flat.all() & ~silent.all(),
        silent.sum(),
        masked,
        torch.zeros_like(unknown),
    ]
    return torch.stack([part.float().reshape(()) for part in parts])
