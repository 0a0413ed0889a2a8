"""The loss of each sample in hosts with unchanged code, either handed over or read from the gradient and checked.

There are two ways to get it.

- **Handed over.** The training step returns `{"loss": loss, "sample_loss": (B,) each sample's loss, unweighted}`. This
  is used for every kind of loss, such as Huber, masks, weights and further terms. Only its form is checked. It must
  hold one number per sample, not negative, and not the same for all samples.
- **Read from the gradient** at the denoiser's output (:mod:`memtrain.signals.denoising_loss`). This is right if the
  loss is the batch mean of squared errors, with no weights except the module's `loss_weight`
  (:mod:`memtrain.monitoring.loss_weight`).

The gradient alone does not show an error of the second way. Half the loss reads as a quarter, and ordinary samples look
memorized. So every batch is checked, and a loss that cannot be read is refused:

- the (weighted) mean of the read losses is the differentiated loss, within 2 %, in *every* batch. Weights such as
  min-SNR are 1 at most timesteps, and L1 sometimes agrees by chance, so some agreeing batches prove nothing;
- the elements of a sample's gradient do not all have one size, as in the gradient of L1, which is a sign;
- no sample has a gradient of zero unless `loss_weight` is zero, and no part of an image has one, as with a mask.

Mitigations do not affect these checks, because the gradient is read before samples are weighted, and the loss before
penalties are added. In the first batches the processes decide at once, and later with each update, before the batches
become evidence. So no flag, and no weight that follows from a flag, comes from an unchecked loss.

Two methods read the gradient even if losses are handed over. Mitigations that weight samples by their loss
(`LossSkipping`) act before the step returns, and `reference: paired` needs the target of the prediction. Both also need
a loss that can be read. For `paired`, the step may also return `target`, the `(B, ...)` target of the denoiser's
output. The compared losses are then mean squared errors. With a masked loss, it also returns `loss_mask` of the same
shape, and the mean covers the elements in the mask.

Cost: a few means per batch. Nothing waits for the device after the first eight batches. Cannot: see a loss that is
differentiated by `loss.backward()` instead of `manual_backward(loss)`, which is refused, or notice that losses are
handed over in another order than the samples.
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
"""Number of batches that are decided as soon as they end."""

FLAT = 0.01
"""Spread of the sizes of a gradient's elements over their mean, below which they count as one size."""


class LossCheck:
    """Takes the losses from a host, and checks losses that are read from its gradient.

    Args:
        early: names of mitigations that need each sample's loss before the training step returns.
        paired: whether batches are compared with the base model on the same noise.
        predicted: function that selects the part of the denoiser's output for `target`; default all of it.
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
        """Whether a loss has been shown."""
        return self._saw

    def differentiates(self, loss: Tensor) -> None:
        """Note that a backward pass from this loss begins; call it before penalties are added."""
        self._saw = True
        self._differentiated = loss.detach().clone()

    def gradient_arrives(self) -> None:
        """Note that the gradient at the denoiser's output belongs to the last loss, because a host may have several."""
        self._of_gradient, self._differentiated = self._differentiated, None

    def forget(self) -> None:
        """Note that the batch is no visit."""
        self._of_gradient, self._differentiated = None, None

    def batch_ends(self, observation: Observation, outputs: Any) -> None:
        """Add the losses from the step to the observation, and compare them.

        Args:
            observation: the complete observation. If it has a `sample_loss` already, nothing is compared.
            outputs: the value that the training step returned, as the host passes it on.

        Raises:
            ConfigurationError: if the returned losses have another form, or if the loss was never seen.
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
                "The loss of the training step was never seen, so the losses read from its gradient cannot be checked",
                expected="self.manual_backward(loss), with which Lightning shows the loss to callbacks",
                remedy=f"write self.manual_backward(loss) instead of loss.backward(), or {HAND_OVER}",
            )
        self._compared.append(HostCopy(_compare(observation, loss, given)))

    def decide(self, host: Host, *, over: bool = False) -> None:
        """Refuse losses that cannot be read; call it on every process.

        Args:
            host: the host of the run.
            over: whether training is over, so that a warning takes the place of the error.

        Raises:
            ConfigurationError: if a batch of any process fails the check.
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
            log.warning("%s. The flags of this run may be wrong. Expected: %s. Remedy: %s", message, expected, remedy)


def _handed_over(observation: Observation, outputs: Any) -> Tensor | None:
    """Return `sample_loss` of the step's outputs, `(B,)` or None; the observation takes `target` and mask."""
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
                remedy="expand the mask to that shape, or remove target and loss_mask",
            )
    elif target is not None and given is None:
        raise ConfigurationError(
            f"training_step returned {_shown(target)} as target",
            expected=f"a tensor of the shape of the denoiser's output, {tuple(observation.gradient.shape)}",
            remedy="return the target of the output itself, or remove `target`",
        )
    return None if given is None else given.detach().to(observation.gradient.device)


def _shown(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _form(losses: Tensor) -> Tensor:
    """Check losses that were handed over, `(B,)`: whether they are finite and of a valid form."""
    losses = losses.float()
    finite = losses.isfinite()
    same = (losses == losses[0]).all() & (len(losses) > 1) & finite.all()
    broken = torch.where((losses < 0).any(), 1.0, torch.where(same, 2.0, 0.0))
    nothing = torch.zeros_like(broken)
    return torch.stack([nothing + GIVEN, finite.any().float(), *[nothing] * 5, broken])


def _compare(observation: Observation, loss: Tensor | None, given: Tensor | None) -> Tensor:
    """Compare losses read from the gradient with the loss and with handed-over losses, and describe the gradient."""
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
    # Channels come first in images, and last in sequences of patches.
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
