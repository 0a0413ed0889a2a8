"""What the batches of a run show of its families, where no scan was made of its data.

Of each visit two things are sent to the host with its signal values, without waiting for the device, and become known
to the index (:mod:`memtrain.families.online`) at the next update, when the visits become evidence: those of all
processes, in the order of batches and ranks, so that every process has the same index.

- The *picture*: the batch's image or latents (:func:`memtrain.monitoring.batch_fields.pictures_of`), or what the loop
  hands over, else the clean latents as they follow from noisy latents, target and noise schedule.
- The *caption*: strings in the batch, rows of token ids, what the host knows by key or hands over, else the text
  embeddings, unless their encoder is trained along. An empty caption is none.

Samples that are named by their images are one sample already if they are equal; of them captions alone are looked at.

A copy of a picture that is held out by weight must not be trained on either, at its first visit. So while samples are
held out by weight, pictures are compared on the device with the remembered ones that are (:meth:`OnlineWatch.twins`).
Copies within one interval between updates cannot be known.

Cost: measured by `benchmarks/online_families.py`; nothing once every sample was met often enough.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from memtrain.families.looks import (
    HASH_BYTES,
    caption_name,
    embedding_hashes,
    looks,
    odd_frequencies,
    row_hashes,
    similarity,
)
from memtrain.families.looks import figures as figures_in
from memtrain.families.online import OnlineFamilies, Seen
from memtrain.families.online_captions import UNREAD
from memtrain.functional.diffusion import clean_latents
from memtrain.models.observation import Observation
from memtrain.models.transfer import HostCopy
from memtrain.monitoring.batch_fields import captions_of, field_of, pictures_of, token_rows
from memtrain.monitoring.heldout_latents import CLEAR, noise_levels
from memtrain.monitoring.host import Host

log = logging.getLogger(__name__)

JUDGED = 100
"""Visits under known keys from which on it is said if pictures are not recognised."""

Setting = bool | Literal["auto"]


def wanted(setting: Setting, host: Host) -> bool:
    """Whether a run finds families as it goes: when told to, else where the data do not speak of families at all."""
    if setting != "auto":
        return bool(setting)
    return host.families is None and not hasattr(host.data, "families")


Part = tuple[int, int, list[str], Tensor | None, list[str | None]]
"""What one process saw of a batch: number, rank, keys, packed looks (zeros where there is none), captions."""


@dataclass
class _Shown:
    """What is known of one batch so far, by row: parts of packed looks, and captions or their hashes."""

    looks: list[Tensor] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    hashes: Tensor | None = None
    unread: bool = False


@dataclass
class _Visits:
    """What one batch showed, on its way to the host."""

    batch: int
    rank: int
    keys: list[str]
    looks: HostCopy | None
    captions: list[str | None]
    hashes: HostCopy | None
    unread: bool

    def read(self) -> Part:
        """On the host."""
        captions = self.captions
        if self.hashes is not None:
            mark = UNREAD if self.unread else ""
            captions = [f"{mark}{value & (2**64 - 1):016x}" if value else None for value in self.hashes.read().tolist()]
        looks = None if self.looks is None else self.looks.read().clone()
        return self.batch, self.rank, self.keys, looks, captions


class OnlineWatch:
    """Shows an index what the batches hold.

    Args:
        host: the surroundings of the run.
        index: that grows.
        held_out: whether a picture is held out by weight, by its name; None where none is.
        always: compare pictures although samples are named by their images.
    """

    def __init__(
        self,
        host: Host,
        index: OnlineFamilies,
        *,
        held_out: Callable[[str], bool] | None = None,
        always: bool = False,
    ) -> None:
        self.host, self.index, self.held_out, self.always = host, index, held_out, always
        self._shown = _Shown()
        self._pending: list[_Visits] = []
        self._restored: list[Part] = []
        self._levels = noise_levels(host.noise_scheduler)
        self._held: dict[str, bool] = {}
        self._held_figures: Tensor | None = None
        self._told = False

    @property
    def _compares(self) -> bool:
        return self.always or not self.host.names.by_content

    # A batch

    def begin(self, batch: Any, keys: Sequence[str]) -> None:
        """Look at a batch, before its forward pass and whatever changes its captions."""
        self._shown = _Shown()
        if self._settled(keys):
            return
        pictures = pictures_of(batch, len(keys)) if self._compares else None
        if pictures is not None and (packed := looks(pictures)) is not None:
            self._shown.looks = [packed]
        if (captions := captions_of(batch, len(keys))) is not None:
            self._shown.captions = [caption_name(text) for text in captions]
        elif (rows := token_rows(batch, len(keys))) is not None:
            ids, empty = rows
            self._shown.hashes = row_hashes(ids).masked_fill(empty, 0)
            self._shown.unread = field_of(batch, "prompt_length") is None

    def show(self, *, images: Tensor | None, captions: Sequence[str] | None) -> None:
        """Take what a loop hands over of its next rows."""
        if images is not None and (packed := looks(images)) is not None:
            self._shown.looks.append(packed)
        if captions is not None:
            self._shown.captions += [caption_name(text) for text in captions]

    def row_looks(self, part: Observation, prediction: Tensor, target: Tensor, *, rows: slice) -> Tensor | None:
        """The packed looks of rows whose loss is handed over, `(b, 8 + D)`; None where nothing shows them."""
        count = sum(map(len, self._shown.looks))
        if count >= rows.stop:
            return torch.cat(self._shown.looks)[rows]
        if not self._compares or count > rows.start or self._settled(part.keys):
            return None
        packed = self._recovered(part, prediction, target)
        if packed is not None and count == rows.start:
            self._shown.looks.append(packed)
        return packed

    def _recovered(self, part: Observation, prediction: Tensor, target: Tensor) -> Tensor | None:
        """Looks of the clean latents; zeros where rounding is blown up."""
        noisy = part.noisy_latents
        if self._levels is None or not prediction.shape == target.shape == noisy.shape:
            return None
        levels, kind = self._levels
        steps = part.timesteps.to(noisy.device)
        level = levels.to(noisy.device)[steps.long().clamp(0, len(levels) - 1)]
        packed = looks(clean_latents(noisy.float(), target.detach().float(), level, prediction_type=kind))
        if packed is not None and noisy.dtype.itemsize < 4:
            packed = packed.masked_fill((steps >= CLEAR * len(levels))[:, None], 0)
        return packed

    def twins(self, packed: Tensor | None) -> Tensor | None:
        """Which rows show a picture that is held out, `(b,)` bool on their device; None where none is known."""
        held = self._held_figures
        if held is None or packed is None or held.shape[1] != packed.shape[1] - HASH_BYTES:
            return None
        if held.device != packed.device:
            held = self._held_figures = held.to(packed.device)
        alike = similarity(figures_in(packed), held, mirrored=odd_frequencies(held.shape[1]).to(held.device))
        return alike.amax(dim=1) >= self.index.memory.threshold()

    @property
    def shown_looks(self) -> Tensor | None:
        """Packed looks of the batch that was begun."""
        return torch.cat(self._shown.looks) if self._shown.looks else None

    def end(self, observation: Observation, *, batch: int) -> None:
        """Start the way to the host of what a batch showed."""
        keys, shown, self._shown = list(observation.keys), self._shown, _Shown()
        packed = torch.cat(shown.looks) if shown.looks else None
        if len(shown.captions) != len(keys):
            shown.captions = [caption_name(self.host.captions.get(key, "")) for key in keys]
        if any(shown.captions):
            shown.hashes = None
        elif shown.hashes is None and not observation.text_trained and not self._settled(keys):
            shown.hashes, shown.unread = embedding_hashes(observation.text_embeddings), True
        if observation.caption_dropped:
            dropped = torch.tensor(list(observation.caption_dropped))
            shown.captions = [None if gone else name for name, gone in zip(shown.captions, dropped, strict=True)]
            if shown.hashes is not None:
                shown.hashes = shown.hashes.masked_fill(dropped.to(shown.hashes.device), 0)
        self._pending.append(
            _Visits(
                batch,
                self.host.rank,
                keys,
                HostCopy(packed) if packed is not None and len(packed) == len(keys) else None,
                shown.captions,
                None if shown.hashes is None else HostCopy(shown.hashes),
                shown.unread,
            )
        )

    def drop(self) -> None:
        """Forget a batch that did not come to its end, or trained nothing."""
        self._shown = _Shown()

    def _settled(self, keys: Sequence[str]) -> bool:
        return all(map(self.index.settled, keys))

    # Updates and checkpoints

    def exchange(self) -> None:
        """Let the index grow by what all processes saw; call on every process alike."""
        own, self._pending, self._restored = self._unread(), [], []
        batches: dict[int, list[Seen]] = {}
        for number, _, keys, packed, captions in sorted(self.host.gather(own), key=lambda part: part[:2]):
            rows = [None] * len(keys) if packed is None else [row if row.any() else None for row in packed]
            batches.setdefault(number, []).extend(map(Seen, keys, rows, captions))
        for seen in batches.values():
            self.index.add(seen)
        if self.held_out is not None:
            self._remember_held(self.held_out)
        self._tell()

    def _remember_held(self, held_out: Callable[[str], bool]) -> None:
        memory = self.index.memory
        known = self._held
        self._held = {name: known[name] if name in known else held_out(name) for name in memory.owners}
        places = [place for place, name in enumerate(memory.owners) if self._held[name]]
        self._held_figures = memory.figures[places] if places else None

    def _tell(self) -> None:
        """Say once if pictures are not recognised although they come again."""
        share = self.index.recognised
        if self._told or share is None or len(self.index.positives) < JUDGED:
            return
        self._told = True
        if share < 0.5 and self.host.rank == 0:
            log.warning(
                "Only %.0f %% of the pictures that came again under their key would be recognised under another: their "
                "augmentation changes them too much. Copies under other keys are missed; a scan of the data finds them "
                "(python train.py scan)",
                100 * share,
            )

    def state_dict(self) -> dict[str, Any]:
        """The index, and what this process saw since the last update."""
        return {"index": self.index.state_dict(), "pending": [list(part) for part in self._unread()]}

    def _unread(self) -> list[Part]:
        return self._restored + [visits.read() for visits in self._pending]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state; of what was seen since the last update, what the process that saved had seen."""
        self.index.load_state_dict(state["index"])
        self._restored = [tuple(part) for part in state["pending"]] if self.host.rank == 0 else []  # type: ignore[misc]
        if self.held_out is not None:
            self._remember_held(self.held_out)
