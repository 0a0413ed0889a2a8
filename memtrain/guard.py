"""The guard: the engine (:mod:`memtrain.monitoring.engine`) in a loop written by hand.

    with Guard(unet, noise_scheduler, accelerator=accelerator) as guard:   # after prepare(), before load_state()
        for batch in loader:
            ...
            loss = guard.loss(model_pred, target, keys=batch["key"])       # in place of F.mse_loss(...).mean()

It works with plain PyTorch, accelerate, Fabric and transformers' Trainer (made in the first `compute_loss`), on one
process or several. `loss` names the samples of the denoiser's last forward with gradients, and returns the mean of gate
times weight times loss. So every loss is known exactly. :class:`memtrain.callbacks.monitor.MemorizationMonitor` is the
same for Lightning.

The guard compares with the base model on the same noise (`reference="paired"`). A tenth of the keys is held out by
weight and calibrates the threshold (`heldout_share`, :mod:`memtrain.monitoring.heldout_keys`). With a
`noise_scheduler`, these samples are also measured under fresh noise (:mod:`memtrain.monitoring.heldout_latents`), and
copies are recognised under other keys (:mod:`memtrain.monitoring.online_watch`). With `accelerator`, checkpoints hold
the guard's state. In other loops, call `state_dict()` on every process, and `load_state_dict()` before the first batch.

Mitigations that change the batch must see it first. Put `with guard.watch(batch):` around forward, loss and backward.
Within it you may keep your own mean of squared errors and show it with `guard.before_backward(loss)`.

Cost: with the defaults, one more forward every fourth batch, and one of `heldout_batch` samples every `calibrate_every`
batches. Cannot: undo the training of a text encoder in the paired comparison, or shard parameters (FSDP).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from memtrain.evidence.calibration import Calibration
from memtrain.models.backbones.base import find_denoiser, unwrap
from memtrain.models.call_hooks import hook_calls
from memtrain.monitoring import loop_mistakes
from memtrain.monitoring.combinations import refuse_unwatched
from memtrain.monitoring.engine import Engine
from memtrain.monitoring.family_index import given_index
from memtrain.monitoring.loop_host import LoopHost, LoopModule
from memtrain.monitoring.mitigation import Mitigation
from memtrain.monitoring.options import named_options
from memtrain.monitoring.sample_losses import Criterion
from memtrain.monitoring.sample_names import SampleNames
from memtrain.signals.base import Signal

_GUARDED: WeakSet[nn.Module] = WeakSet()

# These defaults differ from the defaults of the options.
DEFAULTS = {"reference": "paired", "heldout_share": 0.1}


class Guard:
    """Watch a loop for memorized samples.

    Args:
        denoiser: the denoiser as the loop calls it, or a module that contains it.
        noise_scheduler: the diffusers scheduler that adds the loop's noise.
        accelerator: accelerate's `Accelerator`, or a Fabric.
        mitigations: the mitigations in the order in which they act.
        signals: the signals to measure; default denoising loss and attention entropy.
        folder: the run folder; default the accelerator's `project_dir`, or `runs/guard`.
        captions: captions by key, for the summary and flagged.csv.
        sample_loss: `(batch, timesteps, generator) -> (B,)`, for `reference=True` and measured held-out samples.
        unconditional_text: `() -> (1, T, width)` for guidance norms, or a dict with fields such as `text_embeddings`.
        tokenizer: the tokenizer of the captions, for caption augmentation.
        data: a data object as in :mod:`memtrain.monitoring.data_protocol`.
        options: fields of :class:`memtrain.monitoring.options.WatchOptions` and `WatchSettings`; and `families`
            (:class:`memtrain.families.table.Families`, or the path of a scan's table).

    Raises:
        MemtrainError: if it is made too early or too late, is the second guard, or an option or denoiser is unknown.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        noise_scheduler: Any = None,
        *,
        accelerator: Any = None,
        mitigations: Sequence[Mitigation] = (),
        signals: Sequence[Signal] | None = None,
        folder: str | Path | None = None,
        captions: Mapping[str, str] | None = None,
        sample_loss: Callable[..., Tensor] | None = None,
        unconditional_text: Callable[[], Tensor | Mapping[str, Tensor]] | None = None,
        tokenizer: Any = None,
        data: Any = None,
        **options: Any,
    ) -> None:
        known = given_index(options.pop("families", None))
        self.engine = Engine(signals, named_options({**DEFAULTS, **options}))
        module = LoopModule(
            denoiser, sample_loss=sample_loss, unconditional_text=unconditional_text, tokenizer=tokenizer
        )
        path = self.engine.options.denoiser
        found, self._denoiser, _ = find_denoiser(module, path and f"denoiser.{path}")
        self.engine.options = replace(self.engine.options, denoiser=found)
        loop_mistakes.require_prepared(denoiser, accelerator)
        if unwrap(self._denoiser) in _GUARDED:
            raise loop_mistakes.second_guard()
        folder = folder or getattr(accelerator, "project_dir", None) or Path("runs") / "guard"
        self.host = LoopHost(module, accelerator=accelerator, data=data, folder=folder)
        self.host.families, self.host.captions = known, loop_mistakes.captions(captions)
        self.host.noise_scheduler = loop_mistakes.scheduler(noise_scheduler)
        self.engine.setup(self.host, mitigations)
        self._names, self._started, self._updated, self._over = SampleNames(), False, False, False
        self._watching = False
        self._unhook = hook_calls(self._denoiser, self._before_forward)
        _GUARDED.add(unwrap(self._denoiser))
        self.host.count_steps()
        if hasattr(accelerator, "register_for_checkpointing"):
            accelerator.register_for_checkpointing(self)
        self.host.announce(self.engine.options.settings.heldout_share)

    @property
    def calibration(self) -> Calibration:
        """The calibration of the run, once training has begun."""
        return self.engine.calibration

    @property
    def epoch(self) -> int:
        """Number of epochs finished so far, for the records; the loop sets it."""
        return self.host.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self.host.module.current_epoch = value

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
            return
        try:
            self.engine.flush()
        finally:
            self.close()

    # Each batch

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self.engine.start()

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        outside = not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1
        if outside or self._over or self.engine.turn is not None:
            return
        loop_mistakes.refuse_wrapped_later(self._denoiser)
        late = not self._started
        self._start()
        probe, _, _ = self.engine.running
        if late:
            refuse_unwatched(self.engine.mitigations)
            probe.stand_by()
        if not self._updated:
            self._updated = True
            self.engine.update_when_due()
        if late:
            # A hook that is added during a call does not run in this call.
            probe.enters(args, kwargs)

    def loss(
        self,
        prediction: Tensor,
        target: Tensor,
        *,
        keys: Any = None,
        weights: Tensor | None = None,
        criterion: Criterion = "mse",
        caption_dropped: Any = (),
        images: Tensor | None = None,
        captions: Sequence[str] | None = None,
    ) -> Tensor:
        """Return the batch mean of the gated losses; several calls take the rows of one forward in turn.

        Args:
            prediction: `(B, ...)` prediction, computed from the denoiser's output.
            target: `(B, ...)`.
            keys: B strings or integers, or a tensor, whose rows are hashed; needed outside of :meth:`watch`.
            weights: weights of the samples, `(B,)`, or of the elements (a mask).
            criterion: `mse`, `l1`, `huber`, `smooth_l1`, or a function that gives elementwise or per-sample losses.
            caption_dropped: B values, true if the caption of the sample was dropped in this visit.
            images: `(B, ...)` pixels or latents that identify copies; default latents that `noise_scheduler` recovers.
            captions: B texts that identify equal captions; default their embeddings, unless the encoder is trained.

        Raises:
            MemtrainError: if the prediction belongs to no forward, a row has no key, or the criterion is a mean.
        """
        loop_mistakes.require_forward(self.engine, started=self._started, over=self._over)
        self.engine.show(images=images, captions=captions)
        loss = self.engine.loss(
            prediction,
            target,
            keys=None if keys is None else self._names(keys),
            weights=weights,
            criterion=criterion,
            caption_dropped=torch.as_tensor(caption_dropped).reshape(-1).tolist(),
        )
        if not self._watching and self.engine.handed_over:
            self.engine.end()
            self.engine.running[0].stand_by()
            self._updated = False
        return loss

    @contextmanager
    def watch(
        self,
        batch: dict[str, Any],
        *,
        loss_scale: float | Tensor | None = None,
        loss_weight: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[None]:
        """Show a batch to the mitigations before its forward; forward, loss and backward belong in the `with` block.

        Args:
            batch: a dict with the samples' names in its field `key` (`key_field`); mitigations change it in place.
            loss_scale: factor of the loss before the backward pass, if the accelerator does not know it.
            loss_weight: function from timesteps `(B,)` to the weights of the loop's own loss, if it has weights.
        """
        loop_mistakes.require_free(watching=self._watching, over=self._over)
        self._start()
        field = self.engine.options.key_field
        if isinstance(batch, dict) and field in batch:
            batch[field] = self._names(batch[field])
        self.host.scale = None if loss_scale is None else lambda: loss_scale
        self.host.module.loss_weight = loss_weight
        self._watching = True
        try:
            self.engine.begin(batch, scaled=False)
            yield
            turn = self.engine.turn
            if turn is not None and not turn.handed and self.engine.loss_unseen:
                raise loop_mistakes.unshown_loss()
            self.engine.end()
        finally:
            self._watching, self._updated = False, False
            self.engine.drop_batch()
        self.engine.running[0].stand_by()

    def before_backward(self, loss: Tensor) -> None:
        """Show the loop's own loss before it is scaled, and add the penalties of the mitigations to it in place."""
        if not self._watching:
            raise loop_mistakes.unwatched_loss()
        self.engine.before_backward(loss)

    # Checkpoints and the end

    def state_dict(self) -> dict[str, Any]:
        """Return evidence, calibration and positions in plain types, and write the records up to this state."""
        self.engine.flush()
        return {
            "engine": self.engine.state_dict(),
            "step": self.host.step,
            "mitigations": {type(one).__name__: one.state_dict() for one in self.engine.mitigations},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep a saved state until the first batch.

        Raises:
            ConfigurationError: if the first batch has begun, or the state is not a guard's.
        """
        loop_mistakes.require_state(state, started=self._started)
        self.engine.load_state_dict(state["engine"])
        self.host.step = state["step"]
        for mitigation in self.engine.mitigations:
            mitigation.load_state_dict(state["mitigations"].get(type(mitigation).__name__, {}))

    def finish(self) -> None:
        """Write evidence.parquet, calibration.json and flagged.csv, print the summary, and remove every hook.

        Raises:
            ProbeError: if nothing was watched.
        """
        if self._over:
            return
        try:
            if not self.engine.batches_done:
                raise loop_mistakes.never_stepped(started=self._started)
            self.engine.finish()
        finally:
            self.close()

    def close(self) -> None:
        """Remove every hook; a second call does nothing."""
        self._over = True
        self._unhook()
        self.host.stop()
        self.engine.close()
        _GUARDED.discard(unwrap(self._denoiser))
