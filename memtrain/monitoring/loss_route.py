"""The second route: the host hands over prediction and target, so no loss is read from a gradient.

`loss(prediction, target)` replaces the host's own mean. So every sample's loss is known exactly for any criterion and
weights, before the backward pass. The gate is a weight in the mean, `(gate * weights * sample_loss).mean()`. A weight
of zero also stops non-finite gradients.

The host may change the denoiser's output before it hands it over (casts, chunks, unpacking, SD3's preconditioning), and
these changes need not be known. A view is also a view of the base model's output. Every other change is taken to be
affine, and its Jacobian turns the base model's output into the base model's prediction. Several calls take the rows of
one forward in turn, as prior preservation does with its two halves. The batch is over when all rows are taken.

Cost: none beyond the denoiser. Cannot: carry over changes that are not affine, such as a clamp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import DataError, ProbeError
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation
from memtrain.monitoring.sample_losses import Criterion, sample_losses
from memtrain.monitoring.turn import Turn


@dataclass
class Part:
    """Rows of one forward that were handed over together.

    Attributes:
        turn: the decisions about these rows.
        sample_loss: the losses `(B,)`, detached.
        base_loss: the base model's losses, if this batch is compared.
        prediction: the prediction `(B, ...)`, detached.
        target: the target `(B, ...)`, detached.
        criterion: the criterion of the loss; None if weights of elements are part of it.
    """

    turn: Turn
    sample_loss: Tensor
    base_loss: Tensor | None
    prediction: Tensor
    target: Tensor
    criterion: Criterion | None


class Handover:
    """The losses of one forward that are handed over.

    Args:
        observation: the observation of the forward.
        output: the denoiser's output, with its graph.
        base: the same forward under the base model; None if this batch is not compared.
    """

    def __init__(self, observation: Observation, output: Tensor, base: Observation | None) -> None:
        self.observation, self.output, self.base = observation, output, base
        self.count = len(observation.noisy_latents)
        self.parts: list[Part] = []
        self.rows = 0

    @property
    def complete(self) -> bool:
        """Whether every row was handed over."""
        return self.rows == self.count

    def next_rows(self, prediction: Tensor) -> slice:
        """Return the place of the rows of `prediction`.

        Raises:
            DataError: if the forward had fewer rows.
        """
        if self.rows + len(prediction) > self.count or not len(prediction):
            raise DataError(
                f"The loss has {len(prediction)} rows, but {self.count - self.rows} of the denoiser's {self.count} are "
                "left",
                expected="the rows of one forward, each once, in their order",
                remedy="hand over predictions in the order of the denoiser's inputs",
            )
        return slice(self.rows, self.rows + len(prediction))

    def add(
        self,
        prediction: Tensor,
        target: Tensor,
        *,
        turn: Turn,
        weights: Tensor | None,
        criterion: Criterion,
        penalized: bool,
    ) -> Tensor:
        """Take the next rows.

        Args:
            prediction: `(b, ...)` prediction.
            target: `(b, ...)` target.
            turn: the turn of these rows, which decides their weights here.
            weights: weights of samples or elements.
            criterion: the criterion of the loss.
            penalized: whether to add the mitigations' penalties.

        Returns:
            The loss, `()` with a graph.
        """
        kept: list[Tensor] = []
        shielded = prediction.view_as(prediction)
        if shielded.requires_grad:
            shielded.register_hook(lambda gradient: _stopped(gradient, kept))
        losses, factor = sample_losses(shielded, target, criterion=criterion, weights=weights)
        observation = turn.observation
        observation.sample_loss = losses.detach()
        base_loss = self._base_loss(prediction, target, weights=weights, criterion=criterion)
        gate = turn.decide(observation)
        turn.handed = True
        weighted = losses if factor is None else factor * losses
        if gate is not None:
            kept.append(gate > 0)
            scale = gate.to(losses) if factor is None else gate.to(losses) * factor
            weighted = torch.where(kept[0], scale * losses, 0.0)
        loss = weighted.mean()
        self.rows += len(prediction)
        plain = None if weights is not None and factor is None else criterion
        self.parts.append(Part(turn, losses.detach(), base_loss, prediction.detach(), target.detach(), plain))
        return sum(turn.penalties(loss.device), loss) if penalized else loss

    def _base_loss(
        self, prediction: Tensor, target: Tensor, *, weights: Tensor | None, criterion: Criterion
    ) -> Tensor | None:
        """Compute the base model's losses."""
        viewed = _is_view(prediction, self.output)
        if not viewed:
            _require_connected(prediction, self.output)
        if self.base is None:
            return None
        assert self.base.prediction is not None
        if viewed:
            base = _same_view(self.base.prediction, prediction, self.output)
        else:
            change = self.base.prediction.to(self.output.dtype) - self.output.detach()
            base = prediction.detach() + carried(prediction, self.output, change)
        with torch.no_grad():
            return sample_losses(base, target, criterion=criterion, weights=weights)[0]

    def finished(self) -> Turn:
        """Return the turn of the whole forward, with the losses of the samples and of the base model."""
        turns = [part.turn for part in self.parts]
        self.observation.keys = [key for turn in turns for key in turn.observation.keys]
        dropped = [flag for turn in turns for flag in _full(turn.observation.caption_dropped, turn)]
        self.observation.caption_dropped = dropped if any(dropped) else []
        self.observation.sample_loss = torch.cat([part.sample_loss for part in self.parts])
        if self.base is not None:
            base = [part.base_loss for part in self.parts if part.base_loss is not None]
            self.base.keys, self.base.sample_loss = self.observation.keys, torch.cat(base)
        weights = [turn.weights for turn in turns if turn.weights is not None]
        if len(turns) == 1 and turns[0].observation is self.observation:
            return turns[0]
        return replace(
            turns[0],
            flags=_joined([turn.flags for turn in turns]),
            observation=self.observation,
            heldout=[flag for turn in turns for flag in _full(turn.heldout, turn)],
            weights=torch.cat(weights),
        )


def rows_of(observation: Observation, rows: slice, keys: Sequence[str]) -> Observation:
    """Return the part of an observation for some of its rows, under their names."""
    count = len(observation.noisy_latents)
    if rows == slice(0, count):
        observation.keys = keys
        return observation

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows] if value.dim() and len(value) == count else value
        return {name: cut(part) for name, part in value.items()} if isinstance(value, dict) else value

    parts = {field.name: cut(getattr(observation, field.name)) for field in fields(observation)}
    dropped = list(observation.caption_dropped)[rows]
    return Observation(**{**parts, "keys": keys, "caption_dropped": dropped, "call": None})


def carried(prediction: Tensor, output: Tensor, change: Tensor) -> Tensor:
    """Return the change of the host's prediction for a `change` of the denoiser's output, detached.

    The result is exact if the prediction is affine in the output. The product of the Jacobian with a vector is the
    derivative of the product of its transpose with another vector (Townsend, "A new trick for calculating Jacobian
    vector products", 2017).

    Args:
        prediction: the prediction `(b, ...)` with a graph.
        output: the output `(B, ...)` with a graph.
        change: the change of the output, in its shape.
    """
    with torch.enable_grad():
        probe = torch.zeros_like(prediction, requires_grad=True)
        (backward,) = torch.autograd.grad(prediction, output, probe, retain_graph=True, create_graph=True)
        (forward,) = torch.autograd.grad(backward, probe, change)
    return forward.detach()


def _is_view(prediction: Tensor, output: Tensor) -> bool:
    """Return whether the prediction is the output or a view of it, without waiting for the device."""
    same = prediction.dtype == output.dtype and prediction.requires_grad
    first, second = (tensor.untyped_storage().data_ptr() for tensor in (prediction, output))
    return same and first == second and prediction.storage_offset() >= output.storage_offset()


def _same_view(other: Tensor, prediction: Tensor, output: Tensor) -> Tensor:
    """Return the view of another output that the prediction is of `output`."""
    laid = torch.empty_strided(output.size(), output.stride(), dtype=output.dtype, device=output.device).copy_(other)
    offset = prediction.storage_offset() - output.storage_offset()
    return laid.as_strided(prediction.size(), prediction.stride(), offset)


def _require_connected(prediction: Tensor, output: Tensor) -> None:
    if not prediction.requires_grad:
        raise ProbeError(
            "The prediction has no graph",
            expected="the result of the denoiser's forward with gradients",
            remedy="hand over the prediction without detach()",
        )
    if prediction is output:
        return
    (found,) = torch.autograd.grad(
        prediction, output, torch.zeros_like(prediction), retain_graph=True, allow_unused=True
    )
    if found is None:
        raise ProbeError(
            "The prediction does not depend on the output of the watched denoiser",
            expected="the prediction of its last forward with gradients",
            remedy="hand over each prediction before the denoiser runs again, and watch the denoiser that made it",
        )


def _stopped(gradient: Tensor, kept: list[Tensor]) -> Tensor | None:
    if not kept:
        return None
    shaped = kept[0].view(-1, *[1] * (gradient.dim() - 1))
    return torch.where(shaped, gradient, torch.zeros((), dtype=gradient.dtype, device=gradient.device))


def _full(values: Sequence[bool], turn: Turn) -> list[bool]:
    return list(values) if values else [False] * len(turn.observation.keys)


def _joined(flags: Sequence[Flags]) -> Flags:
    now, ever, score = (torch.cat([getattr(one, name) for one in flags]) for name in ("now", "ever", "score"))
    keys = [key for one in flags for key in one.keys]
    return replace(flags[0], now=now, ever=ever, score=score, keys=keys, ready=None)
