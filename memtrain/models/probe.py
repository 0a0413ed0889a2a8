"""The probe: sees one training forward of a denoiser, and gates its gradient.

What it reads is collected in an :class:`~memtrain.models.observation.Observation`: keys, timesteps, prompt lengths,
text embeddings, the token attention at each site and, once the backward pass reaches the denoiser's output, the
gradient there. Attention is read by a forward pre-hook on the attention module that projects queries and keys once
more; the host keeps its own attention kernel, and LoRA layers, weight averages and gradient checkpointing are seen as
they are.

Only forwards with gradients count while training is observed; validation, sampling and extra no-grad forwards do not.
A probe that saw nothing raises: silent zero is the worst that could happen here.

Compiled denoisers: attach before the first call, because torch.compile never looks at hooks again; attached too late,
the first batch raises. Hooks on attention modules are compiled with the model and break no graph, except under gradient
checkpointing (one break per site; `fullgraph=True` then refuses). Everything else stays outside the compiled region.

Cost: a query and key projection per site and step, and the attention to text (benchmarks/probe_overhead.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.errors import ProbeError
from memtrain.functional.diffusion import gate_gradient
from memtrain.models.attention_reading import AttentionReader, without_cast_cache
from memtrain.models.backbones.base import Backbone, find_backbone, unwrap
from memtrain.models.call_hooks import hook_calls
from memtrain.models.checkpointing import refuse_reentrant
from memtrain.models.forward_checks import ran_twice, require_gradient, require_graph, require_keys, require_readings
from memtrain.models.observation import Observation

Gate = Callable[[Observation], Tensor | None]
"""Called when the loss gradient arrives; returns `(B,)` weights, or None to leave the gradient alone."""


class DenoiserProbe:
    """Hooks on one denoiser.

    Use as a context manager, or call :meth:`attach` and :meth:`detach`.

    Args:
        denoiser: the module whose forward is observed, or the wrapper (torch.compile, PEFT, DDP) that the host calls.
        sites: glob over the paths of attention modules (`*` for all, `up_blocks.*`); default the backbone's subset.
        backbone: structure of the denoiser; found by itself for known families.
        differentiable: keep the graph of the token attention, for a penalty added to the loss.
        text_mass: in joint attention, also read the share of attention given to text (one more attention per site).
        neurons: also read the activation of each site's value neurons (one more projection of the text per site).
        keep_call: keep the arguments and the output of the forward until the observation is dropped.

    Raises:
        ProbeError: if no backbone knows the denoiser, the pattern matches no site, or there is no joint attention.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        sites: str | None = None,
        backbone: Backbone | None = None,
        differentiable: bool = False,
        text_mass: bool = False,
        neurons: bool = False,
        keep_call: bool = False,
    ) -> None:
        backbone = backbone or find_backbone(denoiser)
        if backbone is None:
            raise ProbeError(
                f"No backbone knows {type(denoiser).__name__}",
                expected="a denoiser of a family in memtrain.models.backbones",
                remedy="pass a Backbone, or add a file for this family",
            )
        self.host, self.denoiser, self.backbone = denoiser, unwrap(denoiser), backbone
        self.sites = backbone.select_sites(self.denoiser, sites)
        if text_mass and not backbone.joint:
            raise ProbeError(
                f"{type(self.denoiser).__name__} has no joint attention, so text gets all of it",
                expected="a denoiser with joint attention",
                remedy="leave text_mass out",
            )
        self.differentiable, self.keep_call = differentiable, keep_call
        self._reader = AttentionReader(backbone, text_mass=text_mass, neurons=neurons)
        self._undo: list[Callable[[], None]] = []
        self._pending: Observation | None = None
        self._open: Observation | None = None
        self._tokens = 0
        self._gate: Gate | None = None
        self._needs_gradient = True
        self._named = True
        self.output: Tensor | None = None

    def attach(self) -> DenoiserProbe:
        """Register the hooks; attaching twice is an error."""
        if self._undo:
            raise ProbeError("The probe is attached already", remedy="detach() it first")
        if self.differentiable:
            refuse_reentrant(self.denoiser)
        for name, module in self.sites.items():
            handle = module.register_forward_pre_hook(self._attention_hook(name), with_kwargs=True)
            self._undo.append(handle.remove)
        self._undo.append(hook_calls(self.host, self._before_denoiser, self._after_denoiser))
        return self

    def detach(self) -> None:
        """Remove every hook; harmless when not attached."""
        for undo in self._undo:
            undo()
        self._undo, self._pending, self._open, self._gate, self.output = [], None, None, None, None

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
        if not self._undo:
            raise ProbeError("begin() on a probe that is not attached", remedy="attach() it first")
        self._pending, self._open, self._gate, self._needs_gradient = observation, None, gate, True
        self._named, self.output = True, None

    def stand_by(self) -> Observation:
        """Observe the next forward with gradients, whose samples are named after it, and nothing of its backward pass.

        Returns:
            The observation, without keys until the host names them.
        """
        observation = Observation(())
        self.begin(observation)
        self._named = False
        return observation

    def seen(self) -> Observation:
        """The observation begun last, whose forward is over.

        Raises:
            ProbeError: if no forward with gradients ran, or a site was silent.
        """
        observation = self.current
        require_readings(observation, self.sites)
        return observation

    def enters(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take up a call of the denoiser that had begun when the hooks were attached."""
        self._before_denoiser(self.host, args, kwargs)

    @property
    def current(self) -> Observation:
        """The observation begun last, as far as it goes; complete but for the gradient before the backward pass."""
        if self._pending is None:
            raise ProbeError("No observation was begun", remedy="call begin() before the forward pass")
        return self._pending

    def end(self, *, gradient: bool = True) -> Observation:
        """The observation begun last, complete.

        Args:
            gradient: whether a gradient has to have reached the output.

        Raises:
            ProbeError: if no forward with gradients ran, a site was silent, or no gradient arrived.
        """
        observation, self._pending, self._open, self._gate = self._pending, None, None, None
        self.output = None
        if observation is None:
            raise ProbeError("end() without begin()", remedy="call begin() before the forward pass")
        require_readings(observation, self.sites)
        if gradient and self._needs_gradient:
            require_gradient(observation)
        return observation

    def drop(self) -> None:
        """Forget the observation begun last: its batch was not trained on."""
        self._pending, self._open, self._gate = None, None, None

    @contextmanager
    def measure(self, observation: Observation) -> Iterator[Observation]:
        """Observe the one no-grad forward in the context, for a reference profile or held-out samples."""
        was_attached = bool(self._undo)
        if not was_attached:
            self.attach()
        kept = self._pending, self._gate, self._needs_gradient, self._named
        self._pending, self._gate, self._needs_gradient, self._named = observation, None, False, True
        try:
            with torch.no_grad():
                yield observation
            require_readings(observation, self.sites)
        finally:
            self._open = None
            self._pending, self._gate, self._needs_gradient, self._named = kept
            if not was_attached:
                self.detach()

    def predict(self, observation: Observation, text: Tensor | Mapping[str, Tensor] | None = None) -> Tensor:
        """The denoiser's prediction for what was observed, run once more without gradients and unobserved.

        Args:
            observation: of a probe that keeps calls.
            text: `(1 or B, T, width)` embeddings instead of the observed ones, or a caption as `with_caption` takes it.

        Returns:
            `(B, ...)`, detached.
        """
        assert observation.call is not None
        args, kwargs = observation.call
        if text is not None:
            caption = text if isinstance(text, Mapping) else {"text_embeddings": text}
            kwargs = self.backbone.with_caption(args, kwargs, forward=self.denoiser.forward, caption=caption)
            args = ()
        kept, self._pending = self._pending, None
        try:
            with torch.no_grad():
                return self.backbone.output(self.denoiser(*args, **kwargs))
        finally:
            self._pending = kept

    @torch.compiler.disable
    def _before_denoiser(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._pending is None or (self._needs_gradient and not torch.is_grad_enabled()):
            return
        if not self._named and torch._C._current_graph_task_id() != -1:
            # A host that checkpoints the whole denoiser runs it again during backward.
            return
        if self._pending.timesteps.numel():
            raise ran_twice(named=self._named)
        sample, timestep, text = self.backbone.inputs(args, kwargs)
        if self._named:
            require_keys(self._pending, len(sample))
        if self.keep_call:
            self._pending.call = args, kwargs
        self._start(self._pending, sample, timestep, text)

    def _start(self, observation: Observation, sample: Tensor, timestep: Any, text: Tensor) -> None:
        observation.timesteps = torch.as_tensor(timestep, device=sample.device).detach().expand(len(sample))
        observation.noisy_latents, observation.text_embeddings = sample.detach(), text.detach()
        observation.text_trained, observation.clip_layout = text.requires_grad, self.backbone.clip_layout
        self._tokens = text.shape[1]
        self._open = observation

    @torch.compiler.disable
    def _after_denoiser(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        observation, self._open = self._open, None
        if observation is None or result is None:
            if observation is not None and not self._named:
                # It failed, and the host may try again.
                self.stand_by()
            return
        prediction = self.backbone.output(result)
        if self.keep_call:
            observation.prediction = prediction.detach()
        if not self._needs_gradient:
            return
        self.output = prediction
        require_graph(prediction, observation, differentiable=self.differentiable)
        gate = self._gate
        if not self._named:
            return

        def arrived(gradient: Tensor) -> Tensor | None:
            observation.gradient = self.backbone.prediction_gradient(self.denoiser, gradient.detach())
            weights = gate(observation) if gate is not None else None
            return None if weights is None else gate_gradient(gradient, weights)

        prediction.register_hook(arrived)

    def _attention_hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            observation = self._open
            if observation is not None:
                if self.differentiable and self._needs_gradient:
                    if not torch.is_grad_enabled():
                        raise ProbeError(
                            f"{name} runs without a graph inside a forward with gradients (reentrant checkpointing), "
                            "so a penalty on its attention would have no gradient",
                            expected="non-reentrant gradient checkpointing",
                            remedy="pass use_reentrant=False",
                        )
                    self._reader.read(name, module, args, kwargs, tokens=self._tokens, into=observation)
                elif torch.compiler.is_compiling():
                    # What is compiled keeps no casts, and cannot switch the cache.
                    with torch.no_grad():
                        self._reader.read(name, module, args, kwargs, tokens=self._tokens, into=observation)
                else:
                    with torch.no_grad(), without_cast_cache():
                        self._reader.read(name, module, args, kwargs, tokens=self._tokens, into=observation)
            elif self.differentiable and self._pending is not None and torch._C._current_graph_task_id() != -1:
                # Gradient checkpointing runs the forward again during backward, and has to meet the same operations.
                self._reader.read(name, module, args, kwargs, tokens=self._tokens, into=Observation(()))

        return hook
