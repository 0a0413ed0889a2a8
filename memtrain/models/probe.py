"""The probe: sees one training forward of a denoiser, and gates its gradient.

What it reads is collected in an :class:`Observation`: keys, timesteps, prompt lengths, text embeddings, the token
attention at each site and, once the backward pass reaches the denoiser's output, the gradient there. Attention is read
by a forward pre-hook on the attention module that projects queries and keys once more; the host keeps its own attention
kernel, and LoRA layers, weight averages and gradient checkpointing are seen as they are.

Only forwards with gradients count while training is observed; validation, sampling and extra no-grad forwards do not.
A probe that saw nothing raises: silent zero is the worst that could happen here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from memtrain.errors import ProbeError
from memtrain.functional.attention import token_attention
from memtrain.functional.diffusion import gate_gradient
from memtrain.models.backbones.base import Backbone, find_backbone

Gate = Callable[["Observation"], Tensor | None]
"""Called when the loss gradient arrives; returns `(B,)` weights, or None to leave the gradient alone."""


@dataclass
class Observation:
    """What is known about one batch.

    Attributes:
        keys: B sample keys.
        prompt_length: `(B,)` tokens of the caption with BOS and EOS, or None if the host does not say.
        timesteps: `(B,)` int64.
        text_embeddings: `(B, T, width)`, detached.
        token_attention: per site `(B, T)`.
        gradient: `(B, C, h, w)` gradient of the host's loss at the denoiser's output, before any re-weighting.
        loss_scale: factor between the batch-mean loss and the loss that was differentiated.
        loss_weight: `(B,)` weight that the host gave each sample's loss, or None for equal weights.
        sample_loss: `(B,)` denoising loss, where it is known without a gradient.
    """

    keys: Sequence[str]
    prompt_length: Tensor | None = None
    timesteps: Tensor = field(default_factory=lambda: torch.empty(0))
    text_embeddings: Tensor = field(default_factory=lambda: torch.empty(0))
    token_attention: dict[str, Tensor] = field(default_factory=dict)
    gradient: Tensor | None = None
    loss_scale: float = 1.0
    loss_weight: Tensor | None = None
    sample_loss: Tensor | None = None


class DenoiserProbe:
    """Hooks on one denoiser.

    Use as a context manager, or call :meth:`attach` and :meth:`detach`.

    Args:
        denoiser: the module whose forward is observed.
        sites: glob pattern over the paths of attention modules (`*`, `up_blocks.*`).
        backbone: structure of the denoiser; found by itself for known families.

    Raises:
        ProbeError: if no backbone knows the denoiser, or the pattern matches no site.
    """

    def __init__(self, denoiser: nn.Module, *, sites: str = "*", backbone: Backbone | None = None) -> None:
        backbone = backbone or find_backbone(denoiser)
        if backbone is None:
            raise ProbeError(
                f"No backbone knows {type(denoiser).__name__}",
                expected="a denoiser of a family in memtrain.models.backbones",
                remedy="pass a Backbone, or add a file for this family",
            )
        every = backbone.sites(denoiser)
        self.sites = {name: module for name, module in every.items() if fnmatchcase(name, sites)}
        if not self.sites:
            raise ProbeError(
                f"The site pattern {sites!r} matches none of {len(every)} attention sites",
                expected=f"a pattern over names such as {next(iter(every), 'none')!r}",
                remedy="use '*' for all sites",
            )
        self.denoiser, self.backbone = denoiser, backbone
        self._handles: list[RemovableHandle] = []
        self._pending: Observation | None = None
        self._open: Observation | None = None
        self._gate: Gate | None = None
        self._needs_gradient = True

    def attach(self) -> DenoiserProbe:
        """Register the hooks; attaching twice is an error."""
        if self._handles:
            raise ProbeError("The probe is attached already", remedy="detach() it first")
        self._handles = [
            self.denoiser.register_forward_pre_hook(self._before_denoiser, with_kwargs=True),
            self.denoiser.register_forward_hook(self._after_denoiser, always_call=True),
        ]
        for name, module in self.sites.items():
            self._handles.append(module.register_forward_pre_hook(self._attention_hook(name), with_kwargs=True))
        return self

    def detach(self) -> None:
        """Remove every hook; harmless when not attached."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._pending, self._open, self._gate = [], None, None, None

    def __enter__(self) -> DenoiserProbe:
        return self.attach()

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def begin(self, observation: Observation, gate: Gate | None = None) -> None:
        """Observe the next forward with gradients.

        Args:
            observation: carries keys, prompt lengths and the loss scale; the probe fills in the rest.
            gate: decides the weights when the loss gradient arrives.
        """
        if not self._handles:
            raise ProbeError("begin() on a probe that is not attached", remedy="attach() it first")
        self._pending, self._open, self._gate, self._needs_gradient = observation, None, gate, True

    def end(self) -> Observation:
        """The observation begun last, complete.

        Raises:
            ProbeError: if no forward with gradients ran, a site was silent, or no gradient arrived.
        """
        observation, self._pending, self._open, self._gate = self._pending, None, None, None
        if observation is None:
            raise ProbeError("end() without begin()", remedy="call begin() before the forward pass")
        self._check_seen(observation)
        if self._needs_gradient and observation.gradient is None:
            raise ProbeError(
                "The denoiser ran, but no gradient reached its output",
                expected="a loss that depends on the denoiser's prediction, and a backward pass",
                remedy="check that the loss uses the prediction undetached",
            )
        return observation

    @contextmanager
    def measure(self, observation: Observation) -> Iterator[Observation]:
        """Observe the one no-grad forward in the context, for a reference profile or held-out samples."""
        was_attached = bool(self._handles)
        if not was_attached:
            self.attach()
        kept = self._pending, self._gate, self._needs_gradient
        self._pending, self._gate, self._needs_gradient = observation, None, False
        try:
            with torch.no_grad():
                yield observation
            self._check_seen(observation)
        finally:
            self._open = None
            self._pending, self._gate, self._needs_gradient = kept
            if not was_attached:
                self.detach()

    def _check_seen(self, observation: Observation) -> None:
        silent = [name for name in self.sites if name not in observation.token_attention]
        if not silent:
            return
        if len(silent) == len(self.sites) and not observation.timesteps.numel():
            problem = "The probe saw no forward pass of the denoiser with gradients in this batch"
            remedy = "check that this denoiser is the one being trained"
        else:
            problem = f"{len(silent)} of {len(self.sites)} attention sites reported nothing, first {silent[0]!r}"
            remedy = "attach the probe before torch.compile, and to the denoiser that runs"
        raise ProbeError(problem, expected="a reading from every site", remedy=remedy)

    def _before_denoiser(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._pending is None or (self._needs_gradient and not torch.is_grad_enabled()):
            return
        if self._pending.timesteps.numel():
            raise ProbeError(
                "The denoiser ran twice with gradients in one batch",
                expected="one training forward per batch",
                remedy="run extra forwards under torch.no_grad()",
            )
        sample, timestep, text = self.backbone.inputs(args, kwargs)
        if len(sample) != len(self._pending.keys):
            raise ProbeError(
                f"The denoiser ran on {len(sample)} samples, but the batch names {len(self._pending.keys)} keys",
                expected="one key per sample",
                remedy="give the batch one key per row of the denoiser's input",
            )
        self._pending.timesteps = torch.as_tensor(timestep, device=sample.device).detach().expand(len(sample))
        self._pending.text_embeddings = text.detach()
        self._open = self._pending

    def _after_denoiser(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        observation, self._open = self._open, None
        if observation is None or not self._needs_gradient or result is None:
            return
        prediction = self.backbone.output(result)
        if not prediction.requires_grad:
            raise ProbeError(
                "The denoiser's output does not require a gradient",
                expected="trainable parameters in the denoiser",
                remedy="check requires_grad of the denoiser's parameters",
            )
        gate = self._gate

        def arrived(gradient: Tensor) -> Tensor | None:
            observation.gradient = gradient.detach()
            weights = gate(observation) if gate is not None else None
            return None if weights is None else gate_gradient(gradient, weights)

        prediction.register_hook(arrived)

    def _attention_hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Gradient checkpointing runs the forward again during backward; `_open` is None by then.
            if self._open is not None:
                with torch.no_grad():
                    query, key = self.backbone.project(module, args, kwargs)
                    self._open.token_attention[name] = token_attention(query, key)

        return hook
