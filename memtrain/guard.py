"""The guard: the engine (:mod:`memtrain.monitoring.engine`) in a loop written by hand.

    with Guard(unet, noise_scheduler, accelerator=accelerator) as guard:   # after prepare(), before load_state()
        for batch in loader:
            ...
            loss = guard.loss(model_pred, target, keys=batch["key"])       # in place of F.mse_loss(...).mean()

Plain PyTorch, accelerate, Fabric and transformers' Trainer (made in the first `compute_loss`) alike, on one process or
several. `loss` names the samples of the denoiser's last forward with gradients and returns
`(gate * weights * sample_loss).mean()`: every loss is known exactly. Signals, mitigations, records and summary are
those of :class:`memtrain.callbacks.monitor.MemorizationMonitor`.

Compared is with the base model on the same noise (`reference="paired"`); a tenth of the keys is held out by weight and
calibrates the threshold (`heldout_share`, :mod:`memtrain.monitoring.heldout_keys`), with a `noise_scheduler` also under
fresh noise (:mod:`memtrain.monitoring.heldout_latents`). Pictures and captions that come again under other keys are
known by it too (:mod:`memtrain.monitoring.online_watch`). With `accelerator` the guard's state is in every checkpoint
of `accelerator.save_state`; elsewhere `state_dict()` on every process, and `load_state_dict()` before the first batch.

Mitigations that change the batch have to see it first: `with guard.watch(batch):` around forward, loss and backward. In
it the loss may stay the loop's own mean of squared errors, shown by `guard.before_backward(loss)`.

Cost: with the defaults, a forward of every fourth batch, and one of `heldout_batch` samples every `calibrate_every`
batches. Cannot: undo a text encoder that is trained along in the paired comparison; sharded parameters (FSDP).
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

# Other defaults than the options'.
DEFAULTS = {"reference": "paired", "heldout_share": 0.1}


class Guard:
    """Watch a loop for memorized samples.

    Args:
        denoiser: as the loop calls it, or a module that holds it.
        noise_scheduler: diffusers' scheduler that the loop adds noise by.
        accelerator: accelerate's `Accelerator`, or a Fabric.
        mitigations: in the order in which they act.
        signals: what is measured; default denoising loss and attention entropy.
        folder: of the run; default the accelerator's `project_dir`, or `runs/guard`.
        captions: captions by key, for the summary and flagged.csv.
        sample_loss: `(batch, timesteps, generator) -> (B,)`, for `reference=True` and measured held-out samples.
        unconditional_text: `() -> (1, T, width)` for guidance norms, or a dict with `text_embeddings` and the like.
        tokenizer: of the captions, for caption augmentation.
        data: as :mod:`memtrain.monitoring.data_protocol` says.
        options: those of :class:`memtrain.monitoring.options.WatchOptions` and `WatchSettings`, by name; and `families`
            (:class:`memtrain.families.table.Families`, or the path of a scan's table).

    Raises:
        MemtrainError: if it is made at the wrong time, there is a guard already, or an option or denoiser is unknown.
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
        """Epochs finished so far; the loop says so, for the records."""
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
            # Hooks that are put on during a call are not called in it.
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
        """The batch mean of the gated losses, in place of the loop's own; several calls take a forward's rows in turn.

        Args:
            prediction: `(B, ...)` what the loop computed from the denoiser's output.
            target: `(B, ...)`.
            keys: B strings or integers, or a tensor whose rows are hashed; needed outside of :meth:`watch`.
            weights: `(B,)` of samples, or of elements (a mask).
            criterion: `mse`, `l1`, `huber`, `smooth_l1`, or a function that gives elementwise or per-sample losses.
            caption_dropped: B, true where the sample's caption was dropped from this visit.
            images: `(B, ...)` pixels or latents to know copies by; default those that a `noise_scheduler` recovers.
            captions: B texts, likewise; default their embeddings, unless the encoder is trained along.

        Raises:
            MemtrainError: if the prediction is not a forward's, there is no key for each row, or a criterion is a mean.
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
        """Show a batch to the mitigations before its forward; forward, loss and backward lie within.

        Args:
            batch: a dict with the samples' names in its field `key` (`key_field`); mitigations change it in place.
            loss_scale: what the loss is multiplied by before it is differentiated, where the accelerator does not say.
            loss_weight: `(B,)` timesteps to the weights of the loop's own loss, if it has such.
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
        """Show the loop's own loss, before it is scaled, and add the mitigations' penalties to it in place."""
        if not self._watching:
            raise loop_mistakes.unwatched_loss()
        self.engine.before_backward(loss)

    # Checkpoints and the end

    def state_dict(self) -> dict[str, Any]:
        """Evidence, calibration and positions, plain types and tensors; makes the records end where it does."""
        self.engine.flush()
        return {
            "engine": self.engine.state_dict(),
            "step": self.host.step,
            "mitigations": {type(one).__name__: one.state_dict() for one in self.engine.mitigations},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Kept until the first batch.

        Raises:
            ConfigurationError: if it has begun, or the state is not a guard's.
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
        """Remove every hook; harmless when done before."""
        self._over = True
        self._unhook()
        self.host.stop()
        self.engine.close()
        _GUARDED.discard(unwrap(self._denoiser))
