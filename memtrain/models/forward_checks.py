"""What a forward pass of the denoiser has to be like for :class:`memtrain.models.probe.DenoiserProbe` to see it all.

A probe that saw nothing, or a penalty without a gradient, raises here and says what helps.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from memtrain.errors import ProbeError
from memtrain.models.observation import Observation


def require_readings(observation: Observation, sites: Collection[str]) -> None:
    """That every attention site reported.

    Args:
        observation: of a forward pass that is over.
        sites: the names of those that are observed.

    Raises:
        ProbeError: if no forward pass was seen, or a site was silent.
    """
    silent = [name for name in sites if name not in observation.token_attention]
    if not silent:
        return
    if len(silent) == len(sites) and not observation.timesteps.numel():
        problem = "The probe saw no forward pass of the denoiser with gradients in this batch"
        remedy = (
            "check that this denoiser, or this wrapper of it, is the one that the host calls, and that it was not "
            "compiled and called before the probe was attached"
        )
    else:
        problem = f"{len(silent)} of {len(sites)} attention sites reported nothing, first {silent[0]!r}"
        remedy = "attach the probe before the first call of a compiled denoiser, or call torch._dynamo.reset()"
    raise ProbeError(problem, expected="a reading from every site", remedy=remedy)


def require_graph(prediction: Tensor, observation: Observation, *, differentiable: bool) -> None:
    """That a gradient can come back.

    Args:
        prediction: `(B, ...)` of the denoiser, in training.
        observation: with the token attention.
        differentiable: whether a penalty on the token attention needs a gradient, too.

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
    """That the loss gradient arrived.

    Args:
        observation: of a batch that is over.

    Raises:
        ProbeError: if it did not.
    """
    if observation.gradient is None:
        raise ProbeError(
            "The denoiser ran, but no gradient reached its output",
            expected="a loss that depends on the denoiser's prediction, and a backward pass",
            remedy="check that the loss uses the prediction undetached",
        )


def require_keys(observation: Observation, count: int) -> None:
    """That every sample has a name.

    Args:
        observation: with the keys of the batch.
        count: samples that the denoiser runs on.

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
    """What to say of a second forward with gradients; `named`: whether the batch's samples were known before it."""
    return ProbeError(
        "The denoiser ran twice with gradients "
        + ("in one batch" if named else "before the loss of its first forward was handed over"),
        expected="one training forward per batch" + ("" if named else ", and its loss after it"),
        remedy="run extra forwards under torch.no_grad()"
        + ("" if named else ", and call guard.loss(...) for every row of the prediction"),
    )
