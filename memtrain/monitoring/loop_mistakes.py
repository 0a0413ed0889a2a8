"""Mistakes in the use of a guard in a loop, each with its error and its remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from memtrain.errors import ConfigurationError, ProbeError
from memtrain.models.backbones.base import unwrap
from memtrain.monitoring.heldout_latents import noise_levels

if TYPE_CHECKING:
    from memtrain.monitoring.engine import Engine


def require_prepared(denoiser: nn.Module, accelerator: Any) -> None:
    """Refuse a denoiser that the accelerator has not prepared, or that was trained or restored before.

    Raises:
        ConfigurationError: if the denoiser is not prepared, or was trained before.
    """
    if accelerator is None:
        return
    prepared, late = getattr(accelerator, "_models", None), False
    if isinstance(prepared, list):
        inside = {id(unwrap(module)) for module in prepared}
        inside |= {id(unwrap(part)) for module in prepared for part in module.modules()}
        late = not any(id(unwrap(part)) in inside for part in denoiser.modules())
    elif hasattr(accelerator, "setup_module"):
        late = not any(hasattr(part, "_forward_module") for part in denoiser.modules())
    if late:
        raise _early(f"{type(accelerator).__name__} has not prepared this {type(unwrap(denoiser)).__name__} yet")
    for optimizer in getattr(accelerator, "_optimizers", []):
        states = getattr(optimizer, "state", {}).values()
        if any(float(state["step"]) > 0 for state in states if isinstance(state, dict) and "step" in state):
            raise ConfigurationError(
                "The optimizer took steps before the guard was made",
                expected="a guard from before accelerator.load_state(...) and before the first batch, because it "
                "remembers the weights from before training",
                remedy="make the guard right after accelerator.prepare(...)",
            )


def refuse_wrapped_later(denoiser: nn.Module) -> None:
    """Refuse, in a forward, a denoiser that was wrapped for several processes after the guard was made.

    Raises:
        ConfigurationError: if it was.
    """
    wrapper = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if wrapper is not None and unwrap(wrapper) is unwrap(denoiser) and denoiser is unwrap(denoiser):
        raise _early("A DistributedDataParallel that was put around the denoiser later calls it")


def _early(problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"{problem}: the guard was made too early",
        expected="the denoiser as the loop calls it, after prepare(), setup() or DistributedDataParallel(...)",
        remedy="make the guard after these calls, with the model that they return",
    )


def second_guard() -> ConfigurationError:
    """Return the error for two guards on one denoiser."""
    return ConfigurationError(
        "This denoiser has a guard already",
        expected="one guard, which may measure several signals",
        remedy="use the first guard, or call its finish() first",
    )


def require_state(state: Any, *, started: bool) -> None:
    """Refuse a state that is loaded while the loop runs, and a state of another object.

    Raises:
        ConfigurationError: if it is.
    """
    if started:
        raise ConfigurationError(
            "The guard's state was loaded after the first batch",
            expected="accelerator.load_state(...), or load_state_dict(...), before the first batch",
            remedy="load the checkpoint before the loop",
        )
    if not isinstance(state, Mapping) or not {"engine", "step", "mitigations"} <= state.keys():
        shown = sorted(map(str, state))[:3] if isinstance(state, Mapping) else type(state).__name__
        raise ConfigurationError(
            f"This is no state of a guard: found {shown}",
            expected="the return value of guard.state_dict()",
            remedy="load the guard's own part of the checkpoint",
        )


def captions(found: Any) -> Mapping[str, str]:
    """Return captions by key.

    Raises:
        ConfigurationError: if the value is no dict.
    """
    if found is None or isinstance(found, Mapping):
        return found or {}
    raise ConfigurationError(
        f"captions is a {type(found).__name__}",
        expected="a dict from each sample's key to its caption",
        remedy="pass dict(zip(keys, captions))",
    )


def scheduler(found: Any) -> Any:
    """Return the loop's noise scheduler, or None.

    Raises:
        ConfigurationError: if it cannot add fresh noise.
    """
    if found is None or noise_levels(found) is not None:
        return found
    raise ConfigurationError(
        f"The noise_scheduler is {found!r:.80}, which cannot add fresh noise to held-out samples",
        expected="the diffusers scheduler of the loop, with `alphas_cumprod` (epsilon, v_prediction or sample) or flow "
        "matching",
        remedy="pass this scheduler, or remove noise_scheduler, which measures held-out samples in the loop's batches "
        "only",
    )


def no_forward() -> ProbeError:
    """Return the error for a loss before any forward."""
    return ProbeError(
        "No forward of the denoiser with gradients came before guard.loss(...)",
        expected="a forward of the guard's denoiser that made the prediction",
        remedy="give the guard the denoiser that the loop calls (the return value of prepare())",
    )


def require_forward(engine: Engine, *, started: bool, over: bool) -> None:
    """Refuse a loss after the end, before any forward, or for a forward whose losses were all handed over.

    Raises:
        ConfigurationError: if the guard is over.
        ProbeError: if no forward can belong to the loss.
    """
    require_free(watching=False, over=over)
    if not started:
        raise no_forward()
    pending = engine.intake is not None and engine.intake.handover is not None
    if not pending and engine.batches_done and not engine.running[0].current.timesteps.numel():
        raise ProbeError(
            "No forward of the denoiser came between the last complete loss and guard.loss(...)",
            expected="each row of a forward's prediction handed over once",
            remedy="put several terms of one prediction into one criterion, and call the guard's denoiser with "
            "gradients",
        )


def require_free(*, watching: bool, over: bool) -> None:
    """Refuse the use of a guard that is over, or a batch within a batch.

    Raises:
        ConfigurationError: if it is.
    """
    if over:
        raise ConfigurationError(
            "The guard is over, because finish() or close() was called, or its `with` block was left",
            expected="the whole training loop before the end of the guard",
            remedy="make a new guard for a new loop",
        )
    if watching:
        raise ConfigurationError(
            "One `with guard.watch(batch):` is within another one",
            expected="one batch at a time, with its forward, loss and backward",
            remedy="leave the first block before the next batch begins",
        )


def never_stepped(*, started: bool) -> ProbeError:
    """Return the error for a loop without a batch; `started` if there were forwards."""
    return ProbeError(
        "The guard saw forwards of the denoiser, but no loss was handed over"
        if started
        else "The guard saw no forward of the denoiser with gradients",
        expected="a training loop that calls guard.loss(...) for each batch",
        remedy="put guard.loss(prediction, target, keys=...) in the place of the loop's own mean"
        if started
        else "give the guard the denoiser that the loop calls, after prepare()",
    )


def unshown_loss() -> ProbeError:
    """Return the error for a watched batch whose loss was not shown."""
    return ProbeError(
        "The loss of this batch was not shown, so the losses read from its gradient cannot be checked",
        expected="guard.before_backward(loss) before the backward pass, or guard.loss(...)",
        remedy="call guard.before_backward(loss) before loss.backward()",
    )


def unwatched_loss() -> ProbeError:
    """Return the error for a loss that is shown without a batch."""
    return ProbeError(
        "before_backward(loss) was called outside of `with guard.watch(batch):`",
        expected="a call within the block, or guard.loss(...) without this call",
        remedy="add `with guard.watch(batch):`, or remove the call, because guard.loss(...) adds penalties itself",
    )
