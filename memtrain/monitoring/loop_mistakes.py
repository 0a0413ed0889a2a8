"""What goes wrong where a guard meets a loop, each with its error and its remedy."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from memtrain.errors import ConfigurationError, ProbeError
from memtrain.models.backbones.base import unwrap


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


def late_state() -> ConfigurationError:
    """A checkpoint that is loaded while the loop runs."""
    return ConfigurationError(
        "The guard's state was loaded after the first batch",
        expected="accelerator.load_state(...), or load_state_dict(...), before it",
        remedy="load the checkpoint first",
    )


def no_forward() -> ProbeError:
    """A loss before any forward."""
    return ProbeError(
        "guard.loss(...) before any forward of the denoiser with gradients",
        expected="the forward that made the prediction, of the denoiser that the guard was given",
        remedy="give the guard the denoiser that the loop calls (what prepare() returned)",
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
