"""The conditions under which :class:`memtrain.models.probe.DenoiserProbe` sees all of a denoiser's forward pass.

If a probe saw nothing, or if a penalty has no gradient, these checks raise an error with a remedy.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from memtrain.errors import ProbeError
from memtrain.models.observation import Observation


def require_readings(observation: Observation, sites: Collection[str]) -> None:
    """Check that every attention site has a reading.

    Args:
        observation: the observation of a finished forward pass.
        sites: the names of the observed sites.

    Raises:
        ProbeError: if no forward pass was seen, or if a site has no reading.
    """
    silent = [name for name in sites if name not in observation.token_attention]
    if not silent:
        return
    if len(silent) == len(sites) and not observation.timesteps.numel():
        problem = "The probe saw no forward pass of the denoiser with gradients in this batch"
        remedy = (
            "check that the host calls this denoiser, or this wrapper of it, and that it was not compiled and "
            "called before the probe was attached"
        )
    else:
        problem = f"{len(silent)} of {len(sites)} attention sites reported nothing, first {silent[0]!r}"
        remedy = "attach the probe before the first call of a compiled denoiser, or call torch._dynamo.reset()"
    raise ProbeError(problem, expected="a reading from every site", remedy=remedy)


def require_graph(prediction: Tensor, observation: Observation, *, differentiable: bool) -> None:
    """Check that a gradient can come back.

    Args:
        prediction: the denoiser's output in training, `(B, ...)`.
        observation: the observation with the token attention.
        differentiable: whether a penalty on the token attention also needs a gradient.

    Raises:
        ProbeError: if there is no graph.
    """
    if not prediction.requires_grad:
        raise ProbeError(
            "The denoiser's output does not require a gradient",
            expected="trainable parameters in the denoiser",
            remedy="check requires_grad of the denoiser's parameters",
        )
    if differentiable and not any(a.requires_grad for a in observation.token_attention.values()):
        raise ProbeError(
            "No site's token attention has a graph, so a penalty on it would have no gradient",
            expected="trainable parameters before or in the attention sites",
            remedy="train the query or key projections of some site, or choose later sites",
        )


def require_gradient(observation: Observation) -> None:
    """Check that the loss gradient arrived.

    Args:
        observation: the observation of a finished batch.

    Raises:
        ProbeError: if it did not arrive.
    """
    if observation.gradient is None:
        raise ProbeError(
            "The denoiser ran, but no gradient reached its output",
            expected="a loss that depends on the denoiser's prediction, and a backward pass",
            remedy="check that the loss uses the prediction without detach()",
        )


def require_keys(observation: Observation, count: int) -> None:
    """Check that every sample has a key.

    Args:
        observation: the observation with the keys of the batch.
        count: the number of samples that the denoiser runs on.

    Raises:
        ProbeError: if there are more or fewer keys.
    """
    if count != len(observation.keys):
        raise ProbeError(
            f"The denoiser ran on {count} samples, but the batch names {len(observation.keys)} keys",
            expected="one key per sample",
            remedy="give the batch one key per row of the denoiser's input",
        )


def ran_twice(*, named: bool) -> ProbeError:
    """Return the error of a second forward with gradients; `named` says whether the samples were known before it."""
    return ProbeError(
        "The denoiser ran twice with gradients "
        + ("in one batch" if named else "before the loss of its first forward was passed to guard.loss(...)"),
        expected="one training forward per batch" + ("" if named else ", and its loss after it"),
        remedy="run extra forwards under torch.no_grad()"
        + ("" if named else ", and call guard.loss(...) for every row of the prediction"),
    )
