"""The probe: it sees one training forward of a denoiser, and gates its gradient.

An :class:`~memtrain.models.observation.Observation` collects the readings: keys, timesteps, prompt lengths, text
embeddings, the token attention at each site and, once the backward pass reaches the denoiser's output, the gradient
there. A forward pre-hook on the attention module reads attention by projecting queries and keys once more. The host
keeps its own attention kernel, and LoRA layers, weight averages and gradient checkpointing are seen in their present
state.

Only forwards with gradients count while training is observed. Validation, sampling and extra no-grad forwards do not. A
probe that saw nothing raises an error, because a silent zero would be the worst result.

Compiled denoisers: attach before the first call, because torch.compile ignores later hooks. Otherwise the first batch
raises an error. Hooks on attention modules are compiled with the model and break no graph, except under gradient
checkpointing (one break per site; `fullgraph=True` then fails). All other hooks stay outside the compiled region.

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
"""A function that is called when the loss gradient arrives; it returns `(B,)` weights, or None for no change."""


class DenoiserProbe:
    """Hooks on one denoiser.

    Use it as a context manager, or call :meth:`attach` and :meth:`detach`.

    Args:
        denoiser: the module whose forward is observed, or the wrapper (torch.compile, PEFT, DDP) that the host calls.
        sites: a glob over the paths of attention modules (`*` for all); by default the backbone's subset.
        backbone: the structure of the denoiser; known families are found by default.
        differentiable: whether to keep the graph of the token attention, for a penalty added to the loss.
        text_mass: whether to also read the share of attention on text in joint attention (one more attention per site).
        neurons: whether to also read the activation of value neurons (one more projection of the text per site).
        keep_call: whether to keep the arguments and the output of the forward until the observation is dropped.

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
                remedy="remove text_mass",
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
            raise ProbeError("The probe is already attached", remedy="call detach() first")
        if self.differentiable:
            refuse_reentrant(self.denoiser)
        for name, module in self.sites.items():
            handle = module.register_forward_pre_hook(self._attention_hook(name), with_kwargs=True)
            self._undo.append(handle.remove)
        self._undo.append(hook_calls(self.host, self._before_denoiser, self._after_denoiser))
        return self

    def detach(self) -> None:
        """Remove every hook; nothing happens if the probe is not attached."""
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
            observation: the observation with keys, prompt lengths and the loss scale; the probe fills in the rest.
            gate: the function that decides the weights when the loss gradient arrives.
        """
        if not self._undo:
            raise ProbeError("begin() was called on a probe that is not attached", remedy="call attach() first")
        self._pending, self._open, self._gate, self._needs_gradient = observation, None, gate, True
        self._named, self.output = True, None

    def stand_by(self) -> Observation:
        """Observe the next forward with gradients, but not its backward pass, and return the observation.

        It has no keys until the host names the samples.
        """
        observation = Observation(())
        self.begin(observation)
        self._named = False
        return observation

    def seen(self) -> Observation:
        """Return the latest observation, whose forward is over.

        Raises:
            ProbeError: if no forward with gradients ran, or if a site has no reading.
        """
        observation = self.current
        require_readings(observation, self.sites)
        return observation

    def enters(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take in a call of the denoiser that had begun when the hooks were attached."""
        self._before_denoiser(self.host, args, kwargs)

    @property
    def current(self) -> Observation:
        """The latest observation in its present state; before the backward pass, only the gradient is missing."""
        if self._pending is None:
            raise ProbeError("No observation was begun", remedy="call begin() before the forward pass")
        return self._pending

    def end(self, *, gradient: bool = True) -> Observation:
        """Return the latest observation, complete.

        Args:
            gradient: whether a gradient must have reached the output.

        Raises:
            ProbeError: if no forward with gradients ran, a site has no reading, or no gradient arrived.
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
        """Drop the latest observation, because its batch was not trained on."""
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
        """Run the denoiser once more on the observed inputs, without gradients and unobserved.

        Args:
            observation: an observation of a probe that keeps calls.
            text: `(1 or B, T, width)` embeddings instead of the observed ones, or a caption in the form of
                `with_caption`.

        Returns:
            The prediction, `(B, ...)`, detached.
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
                # The forward failed, and the host may try again.
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
                    # Compiled code keeps no casts, and cannot switch the cache.
                    with torch.no_grad():
                        self._reader.read(name, module, args, kwargs, tokens=self._tokens, into=observation)
                else:
                    with torch.no_grad(), without_cast_cache():
                        self._reader.read(name, module, args, kwargs, tokens=self._tokens, into=observation)
            elif self.differentiable and self._pending is not None and torch._C._current_graph_task_id() != -1:
                # Gradient checkpointing runs the forward again during backward, and must meet the same operations.
                self._reader.read(name, module, args, kwargs, tokens=self._tokens, into=Observation(()))

        return hook
