"""Samples that are held out by weight, measured again with fresh noise.

An epoch has one visit of each held-out sample. To get a threshold within an epoch or two, the clean latents of some
samples are recovered from the denoiser's input and its target. They are kept with the other arguments of the call. At
regular steps they get new noise and are measured without gradients, divided among the processes.

This needs a prediction that is the denoiser's own output, one of the named criteria and no weights of elements. It
works with schedulers of the DDPM family (`epsilon`, `v_prediction`, `sample`) and flow matching. In other cases
held-out samples calibrate by their own visits only.

Cost: latents and embeddings of at most :data:`LIMIT` samples, on the host (0.3 MB each in Stable Diffusion 1.5) and in
checkpoints, and a forward of `heldout_batch` samples every `calibrate_every` batches. Cannot: detect input
perturbation, where the noise in the latents differs from the target.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.functional.diffusion import clean_latents, noisy_and_target
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.monitoring.heldout_keys import HeldoutKeys
from memtrain.monitoring.host import Host
from memtrain.monitoring.loss_route import Part
from memtrain.monitoring.measurement import HeldoutVisits, as_in_training
from memtrain.monitoring.paired_reference import PairedReference
from memtrain.monitoring.sample_losses import sample_losses

log = logging.getLogger(__name__)

LIMIT = 64
"""Number of kept samples, each from another picture."""
CLEAR = 0.5
"""Share of the schedule within which latents in half precision are recovered. Above it, rounding errors grow too large.
"""
NOISY, TIMESTEP = "<noisy latents>", "<timesteps>"
"""Placeholders in a kept call for values that are drawn again."""


class HeldoutLatents:
    """Keeps latents of held-out samples and measures them.

    Args:
        host: a host with a `noise_scheduler`.
        probe: the probe on the denoiser, which keeps calls.
        chosen: the rule that chooses the held-out samples.
        read: function that reads the signal values `(B, columns)` of an observation.
        maximum_timestep: upper limit of the drawn timesteps.
        seed: seed of timesteps and noise.
        complete: function that adds the further readings of the signals to each observation.
        paired: weights of the base model, to measure under it too.
    """

    def __init__(
        self,
        host: Host,
        probe: DenoiserProbe,
        *,
        chosen: HeldoutKeys,
        read: Callable[[Observation], Tensor],
        maximum_timestep: int,
        seed: int,
        complete: Callable[[Observation], None] | None = None,
        paired: PairedReference | None = None,
    ) -> None:
        self.host, self.probe, self.chosen, self.read = host, probe, chosen, read
        self.maximum_timestep, self.seed = maximum_timestep, seed
        self.complete, self.paired = complete, paired
        self.kept: dict[str, dict[str, Any]] = {}
        self.done = 0
        self._new: dict[str, dict[str, Any]] = {}
        self._levels = noise_levels(host.noise_scheduler)
        self._full = False

    def offer(self, parts: Sequence[Part], whole: Observation) -> None:
        """Keep the new samples of a batch.

        Args:
            parts: the parts of the batch that were handed over.
            whole: the observation of its forward.
        """
        if self._levels is None or self._full or whole.call is None:
            return
        first = 0
        for part in parts:
            rows = range(first, first := first + len(part.sample_loss))
            for row, key in zip(rows, part.turn.observation.keys, strict=True):
                # One file of a picture is kept, because more files would only replace other pictures.
                picture = self.chosen.picture(key)
                if key in self.chosen and picture not in self.kept and picture not in self._new:
                    sample = self._sample(part, whole, row=row, inside=row - rows.start)
                    if sample is not None:
                        self._new[picture] = {"key": key, **sample}

    def _sample(self, part: Part, whole: Observation, *, row: int, inside: int) -> dict[str, Any] | None:
        """Return the kept values of one sample; None if it cannot be kept."""
        assert whole.call is not None
        assert whole.prediction is not None
        assert self._levels is not None
        levels, kind = self._levels
        step, noisy, output = whole.timesteps[row], whole.noisy_latents[row], whole.prediction[row]
        prediction, target = part.prediction[inside], part.target[inside]
        if not isinstance(part.criterion, str) or not prediction.shape == output.shape == noisy.shape:
            return None
        clear = noisy.dtype.itemsize >= 4 or float(step) < CLEAR * len(levels)
        if not clear or not torch.equal(prediction.float(), output.float()):
            return None
        level = levels[step.long().cpu()].to(noisy.device)[None]
        latents = clean_latents(noisy[None].float(), target[None].float(), level, prediction_type=kind)[0].cpu()
        sample, timestep, _ = self.probe.backbone.inputs(*whole.call)
        call = _Row(row, len(whole.noisy_latents), noisy=sample, timestep=timestep)
        args, kwargs = call.cut(list(whole.call[0])), call.cut(whole.call[1])
        if not call.plain or call.replaced != {NOISY, TIMESTEP}:
            return None
        dtypes = [str(noisy.dtype), str(torch.as_tensor(timestep).dtype)]
        return {"latents": latents, "args": args, "kwargs": kwargs, "dtypes": dtypes, "criterion": part.criterion}

    def exchange(self) -> None:
        """Share the kept samples among the processes; call it on every process."""
        if self._levels is None or self._full:
            return
        for sample in self.host.gather(list(self._new.values())):
            first = next(iter(self.kept.values()), sample)
            if len(self.kept) < LIMIT and _form(sample) == _form(first):
                self.kept.setdefault(self.chosen.picture(sample["key"]), sample)
        self._new, self._full = {}, len(self.kept) == LIMIT
        if self._full and self.host.rank == 0:
            log.info("%d held-out samples are kept for measuring, %.1f MB", LIMIT, self.megabytes())

    def megabytes(self) -> float:
        """Return the memory of the kept samples on the host."""
        return sum(_bytes(sample) for sample in self.kept.values()) / 1e6

    def measure(self, count: int) -> HeldoutVisits | None:
        """Measure the next `count` samples of this process; None without samples."""
        if not self.kept:
            return None
        samples, total = list(self.kept.values()), len(self.kept)
        first = self.done + self.host.rank * count
        # If there are few samples, each is measured under several noises.
        chosen = [samples[(first + offset) % total] for offset in range(count)]
        self.done += count * self.host.world_size
        with as_in_training(self.host):
            timesteps, values = self._measure(chosen, first)
            base = None
            if self.paired is not None:
                with self.paired.base_weights(self.probe.denoiser):
                    _, base = self._measure(chosen, first)
        keys = [sample["key"] for sample in chosen]
        return HeldoutVisits(keys, timesteps, [float("nan")] * len(keys), values, base)

    def _measure(self, samples: Sequence[dict[str, Any]], first: int) -> tuple[list[int], Tensor]:
        assert self._levels is not None
        levels, kind = self._levels
        device = self.host.device
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + first)
        steps = torch.randint(self.maximum_timestep, (len(samples),), generator=generator, device=device)
        latents = torch.stack([sample["latents"] for sample in samples]).to(device)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        noisy, target = noisy_and_target(latents, noise, levels.to(device)[steps], prediction_type=kind)
        kinds = [getattr(torch, name.removeprefix("torch.")) for name in samples[0]["dtypes"]]
        new = {NOISY: noisy.to(kinds[0]), TIMESTEP: steps.to(kinds[1])}
        args = _stacked([sample["args"] for sample in samples], new, device)
        kwargs = _stacked([sample["kwargs"] for sample in samples], new, device)
        with self.probe.measure(Observation([sample["key"] for sample in samples])) as observation:
            self.probe.host(*args, **kwargs)
        assert observation.prediction is not None
        observation.sample_loss, _ = sample_losses(
            observation.prediction, target, criterion=samples[0]["criterion"], weights=None
        )
        if self.complete is not None:
            self.complete(observation)
        return steps.tolist(), self.read(observation).cpu()

    def state_dict(self) -> dict[str, Any]:
        """Return plain types and tensors."""
        return {"kept": list(self.kept.values()), "new": list(self._new.values()), "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state."""
        self.kept = {self.chosen.picture(sample["key"]): sample for sample in state["kept"]}
        self._new = (
            {self.chosen.picture(sample["key"]): sample for sample in state["new"]} if self.host.rank == 0 else {}
        )
        self.done, self._full = state["done"], len(self.kept) == LIMIT


def noise_levels(scheduler: Any) -> tuple[Tensor, str] | None:
    """Return each timestep's level `(steps,)` and the prediction type for :func:`noisy_and_target`, or None."""
    alphas = getattr(scheduler, "alphas_cumprod", None)
    config = getattr(scheduler, "config", {})
    if isinstance(alphas, Tensor):
        kind = str(config.get("prediction_type", "epsilon"))
        return (alphas.cpu().float(), kind) if kind in ("epsilon", "v_prediction", "sample") else None
    if "FlowMatch" in type(scheduler).__name__:
        steps = int(config.get("num_train_timesteps", 1000))
        return torch.arange(steps) / steps, "flow_prediction"
    return None


class _Row:
    """Cuts one row out of the arguments of a call."""

    def __init__(self, row: int, count: int, *, noisy: Any, timestep: Any) -> None:
        self.row, self.count, self.noisy, self.timestep = row, count, noisy, timestep
        self.replaced: set[str] = set()
        self.plain = True

    def cut(self, value: Any) -> Any:
        for stand_in, original in ((NOISY, self.noisy), (TIMESTEP, self.timestep)):
            if value is original:
                self.replaced.add(stand_in)
                return stand_in
        if isinstance(value, Tensor):
            rows = value.dim() > 0 and len(value) == self.count
            return value[self.row].detach().cpu().clone() if rows else [value.detach().cpu().clone()]
        if isinstance(value, dict):
            return {name: self.cut(part) for name, part in value.items()}
        if isinstance(value, list):
            return {str(index): self.cut(part) for index, part in enumerate(value)}
        self.plain &= value is None or isinstance(value, bool | int | float | str)
        return value


def _stacked(rows: Sequence[Any], new: dict[str, Tensor], device: torch.device) -> Any:
    """Build the arguments of a call from rows of :class:`_Row`; a lone tensor in a list belongs to the batch."""
    first = rows[0]
    if isinstance(first, str) and first in new:
        return new[first]
    if isinstance(first, Tensor):
        return torch.stack(list(rows)).to(device)
    if isinstance(first, list):
        return first[0].to(device)
    if isinstance(first, dict):
        parts = {name: _stacked([row[name] for row in rows], new, device) for name in first}
        return list(parts.values()) if [*parts] == [str(index) for index in range(len(parts))] and parts else parts
    return first


def _form(value: Any) -> Any:
    """Return the shapes in a kept sample, because only samples of equal shapes share a forward."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return {name: _form(part) for name, part in value.items() if name != "key"}
    return [_form(part) for part in value] if isinstance(value, list) else value


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(_bytes(part) for part in parts)
