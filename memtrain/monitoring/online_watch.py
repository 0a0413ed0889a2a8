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
held out by weight, pictures are compared on the device with the remembered ones that are (:meth:`OnlineWatch.twins`),
and their fingerprints with those of the forgotten ones. Copies within one interval between updates cannot be known, nor
copies that are not equal in all values of a picture whose look was forgotten: those go by their own name's hash.

Cost: measured by `benchmarks/online_families.py`; nothing once every sample was met often enough.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.renaming import rename_picture
from memtrain.families.figures import (
    HASH_BYTES,
    similarity,
)
from memtrain.families.figures import figures as figures_in
from memtrain.families.online import OnlineFamilies, Seen
from memtrain.models.observation import Observation
from memtrain.monitoring.heldout_keys import HeldoutKeys
from memtrain.monitoring.heldout_latents import noise_levels
from memtrain.monitoring.host import Host
from memtrain.monitoring.options import WatchOptions
from memtrain.monitoring.shown_batch import Part, ShownBatch, ShownVisits, recovered

log = logging.getLogger(__name__)

JUDGED = 100
"""Visits under known keys from which on it is said if pictures are not recognised."""

Setting = bool | Literal["auto"]


def wanted(setting: Setting, host: Host) -> bool:
    """Whether a run finds families as it goes: when told to, else where the data do not speak of families at all."""
    if setting != "auto":
        return bool(setting)
    return host.families is None and not hasattr(host.data, "families")


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
        self._shown = ShownBatch()
        self._pending: list[ShownVisits] = []
        self._restored: list[Part] = []
        self._levels = noise_levels(host.noise_scheduler)
        self._held: dict[str, bool] = {}
        self._held_figures: Tensor | None = None
        self._held_hashes: Tensor | None = None
        self._hashed = 0
        self._told = False

    @classmethod
    def of(cls, host: Host, *, chosen: HeldoutKeys, options: WatchOptions) -> OnlineWatch | None:
        """That of a run; None where its index does not grow."""
        if not isinstance(host.families, OnlineFamilies):
            return None
        held_out = chosen.__contains__ if chosen.share else None
        return cls(host, host.families, held_out=held_out, always=options.settings.online_families is True)

    @property
    def _compares(self) -> bool:
        return self.always or not self.host.names.by_content

    # A batch

    def begin(self, batch: Any, keys: Sequence[str]) -> Tensor | None:
        """Look at a batch, before its forward pass and whatever changes its captions.

        Returns:
            Its :meth:`twins`.
        """
        self._shown = ShownBatch()
        if self._settled(keys):
            return None
        self._shown.read(batch, len(keys), pictures=self._compares)
        return self.twins(torch.cat(self._shown.looks)) if self._shown.looks else None

    def show(self, *, images: Tensor | None, captions: Sequence[str] | None) -> None:
        """Take what a loop hands over of its next rows."""
        self._shown.add(images=images, captions=captions)

    def take(self, part: Observation, prediction: Tensor, target: Tensor, *, rows: slice) -> Tensor | None:
        """Look at rows whose loss is handed over.

        Returns:
            Their :meth:`twins`.
        """
        return self.twins(self._row_looks(part, prediction, target, rows=rows))

    def _row_looks(self, part: Observation, prediction: Tensor, target: Tensor, *, rows: slice) -> Tensor | None:
        """Packed, `(b, 8 + D)`; None where nothing shows them."""
        count = self._shown.rows()
        if count >= rows.stop:
            return torch.cat(self._shown.looks)[rows]
        if not self._compares or count != rows.start or self._settled(part.keys):
            return None
        packed = recovered(part, prediction, target, levels=self._levels)
        if packed is not None:
            self._shown.looks.append(packed)
        return packed

    def twins(self, packed: Tensor | None) -> Tensor | None:
        """Which rows show a picture that is held out, `(b,)` bool on their device; None where none is known."""
        held, hashes = self._held_figures, self._held_hashes
        found = None
        if packed is None:
            return None
        if hashes is not None:
            if hashes.device != packed.device:
                hashes = self._held_hashes = hashes.to(packed.device)
            own = packed[:, :HASH_BYTES].reshape(-1).clone().view(torch.int64)
            found = hashes[torch.searchsorted(hashes, own).clamp(max=len(hashes) - 1)] == own
        if held is None or held.shape[1] != packed.shape[1] - HASH_BYTES:
            return found
        if held.device != packed.device:
            held = self._held_figures = held.to(packed.device)
        alike = similarity(figures_in(packed), held).amax(dim=1) >= self.index.memory.threshold()
        return alike if found is None else alike | found

    def end(self, observation: Observation, *, batch: int) -> None:
        """Start the way to the host of what a batch showed."""
        settled = self._settled(observation.keys)
        self._pending.append(self._shown.visits(observation, self.host, batch=batch, settled=settled))
        self._shown = ShownBatch()

    def drop(self) -> None:
        """Forget a batch that did not come to its end, or trained nothing."""
        self._shown = ShownBatch()

    def _settled(self, keys: Sequence[str]) -> bool:
        return all(map(self.index.settled, keys))

    # Updates and checkpoints

    def exchange(self, calibration: Calibration) -> None:
        """Let the index grow by what all processes saw; call on every process alike.

        Args:
            calibration: in which what is known of a picture goes over to the earlier one that it turns out to be.
        """
        own, self._pending, self._restored = self._unread(), [], []
        seen: list[Seen] = []
        for _, _, keys, packed, captions in sorted(self.host.gather(own), key=lambda part: part[:2]):
            rows = [None] * len(keys) if packed is None else [row if row.any() else None for row in packed]
            seen.extend(map(Seen, keys, rows, captions))
        # All at once: what is remembered is gone through once an update.
        self.index.add(seen)
        for old, new in self.index.renamed:
            rename_picture(calibration, old, new)
        self.index.renamed.clear()
        if self.held_out is not None:
            self._remember_held(self.held_out)
        self._tell()

    def _remember_held(self, held_out: Callable[[str], bool]) -> None:
        memory = self.index.memory
        known = self._held
        self._held = {name: known[name] if name in known else held_out(name) for name in memory.owners}
        places = [place for place, name in enumerate(memory.owners) if self._held[name]]
        self._held_figures = memory.figures[places] if places else None
        # Fingerprints of forgotten pictures come in their thousands once in a while, and stay.
        forgotten = memory.hashes.dropped + len(memory.hashes)
        if forgotten != self._hashed:
            new = memory.hashes.since(max(0, self._hashed - memory.hashes.dropped))
            held = [fingerprint for fingerprint, name in new if held_out(name)]
            before = [] if self._held_hashes is None else [self._held_hashes.cpu()]
            every = torch.cat([*before, torch.tensor(held, dtype=torch.int64)])
            self._held_hashes, self._hashed = (every.sort().values if len(every) else None), forgotten

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
                "(memtrain scan)",
                100 * share,
            )

    def finish(self, folder: Path) -> None:
        """Write `families.parquet` of the samples that are remembered into the folder of the records."""
        if self.host.rank == 0:
            keys = self.index.keys()
            self.index.families(keys).write(folder / "families.parquet", keys)

    def state_dict(self) -> dict[str, Any]:
        """The index, and what this process saw since the last update."""
        return {"index": self.index.state_dict(), "pending": [list(part) for part in self._unread()]}

    def _unread(self) -> list[Part]:
        return self._restored + [visits.read() for visits in self._pending]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state; of what was seen since the last update, what the process that saved had seen."""
        self.index.load_state_dict(state["index"])
        self._restored = [tuple(part) for part in state["pending"]] if self.host.rank == 0 else []
        self._held_hashes, self._hashed = None, 0
        if self.held_out is not None:
            self._remember_held(self.held_out)
