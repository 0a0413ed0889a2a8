"""What goes wrong where a guard meets a loop, each with its error and its remedy."""

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
    """Refuse a denoiser that the accelerator has yet to prepare, and one that was trained or restored before.

    Raises:
        ConfigurationError: if it is.
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
                "The optimizer has taken steps before there was a guard",
                expected="a guard before accelerator.load_state(...), which restores its state too, and before the "
                "first batch: it remembers the weights that training begins with",
                remedy="make the guard right after accelerator.prepare(...)",
            )


def refuse_wrapped_later(denoiser: nn.Module) -> None:
    """Refuse, in a forward, a denoiser that was wrapped for several processes after the guard got it.

    Raises:
        ConfigurationError: if it was.
    """
    wrapper = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if wrapper is not None and unwrap(wrapper) is unwrap(denoiser) and denoiser is unwrap(denoiser):
        raise _early("The denoiser is called by a DistributedDataParallel that was put around it later")


def _early(problem: str) -> ConfigurationError:
    return ConfigurationError(
        f"{problem}: the guard was made too early",
        expected="the denoiser as the loop calls it: after prepare(), setup() or DistributedDataParallel(...)",
        remedy="make the guard after them, of what they return",
    )


def second_guard() -> ConfigurationError:
    """Two guards on one denoiser."""
    return ConfigurationError(
        "There is a guard on this denoiser already",
        expected="one, which may measure several signals",
        remedy="use that one, or call its finish() first",
    )


def require_state(state: Any, *, started: bool) -> None:
    """Refuse a checkpoint that is loaded while the loop runs, and one of something else.

    Raises:
        ConfigurationError: if it is.
    """
    if started:
        raise ConfigurationError(
            "The guard's state was loaded after the first batch",
            expected="accelerator.load_state(...), or load_state_dict(...), before it",
            remedy="load the checkpoint first",
        )
    if not isinstance(state, Mapping) or not {"engine", "step", "mitigations"} <= state.keys():
        shown = sorted(map(str, state))[:3] if isinstance(state, Mapping) else type(state).__name__
        raise ConfigurationError(
            f"This is no state of a guard: found {shown}",
            expected="what guard.state_dict() returned",
            remedy="load the guard's own part of the checkpoint",
        )


def captions(found: Any) -> Mapping[str, str]:
    """Captions by key.

    Raises:
        ConfigurationError: if they are something else.
    """
    if found is None or isinstance(found, Mapping):
        return found or {}
    raise ConfigurationError(
        f"captions is a {type(found).__name__}",
        expected="a dict from each sample's key to its caption",
        remedy="pass dict(zip(keys, captions))",
    )


def scheduler(found: Any) -> Any:
    """The loop's noise scheduler, or None.

    Raises:
        ConfigurationError: if fresh noise cannot be added by it.
    """
    if found is None or noise_levels(found) is not None:
        return found
    raise ConfigurationError(
        f"The noise_scheduler is {found!r:.80}, by which no fresh noise can be added to held-out samples",
        expected="diffusers' scheduler of the loop, with `alphas_cumprod` (epsilon, v_prediction or sample) or flow "
        "matching",
        remedy="give that one, or leave it out: then held-out samples are measured in the loop's own batches alone",
    )


def no_forward() -> ProbeError:
    """A loss before any forward."""
    return ProbeError(
        "guard.loss(...) before any forward of the denoiser with gradients",
        expected="the forward that made the prediction, of the denoiser that the guard was given",
        remedy="give the guard the denoiser that the loop calls (what prepare() returned)",
    )


def require_forward(engine: Engine, *, started: bool, over: bool) -> None:
    """Refuse a loss after the end, before any forward, and for a forward whose losses were all handed over.

    Raises:
        ConfigurationError: after the end.
        ProbeError: if there is no forward that the loss could belong to.
    """
    require_free(watching=False, over=over)
    if not started:
        raise no_forward()
    pending = engine.intake is not None and engine.intake.handover is not None
    if not pending and engine.batches_done and not engine.running[0].current.timesteps.numel():
        raise ProbeError(
            "guard.loss(...) without a forward of the denoiser since the last loss was complete",
            expected="each row of a forward's prediction handed over once",
            remedy="put several terms on one prediction into one criterion; and call the denoiser that the guard was "
            "given, with gradients",
        )


def require_free(*, watching: bool, over: bool) -> None:
    """Refuse the use of a guard that is over, and a batch within a batch.

    Raises:
        ConfigurationError: if it is.
    """
    if over:
        raise ConfigurationError(
            "The guard is over: finish() or close() was called, or its `with` block was left",
            expected="the whole training loop before that",
            remedy="make a new guard for a new loop",
        )
    if watching:
        raise ConfigurationError(
            "`with guard.watch(batch):` within another",
            expected="one batch at a time: its forward, loss and backward",
            remedy="leave the first block before the next batch begins",
        )


def never_stepped(*, started: bool) -> ProbeError:
    """A loop that is over without a batch; `started` if there were forwards."""
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
    """A watched batch whose loss nobody has seen."""
    return ProbeError(
        "The loss of this batch was not shown, so what is read from its gradient cannot be checked",
        expected="guard.before_backward(loss) before the backward pass, or guard.loss(...)",
        remedy="add it",
    )


def unwatched_loss() -> ProbeError:
    """A loss that is shown for no batch."""
    return ProbeError(
        "before_backward(loss) outside of `with guard.watch(batch):`",
        expected="it within, or guard.loss(...) alone",
        remedy="watch the batch, or leave it out: guard.loss(...) adds penalties itself",
    )
