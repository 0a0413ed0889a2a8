"""Families that are found during a run, if there was no scan of its data.

Each visit sends two things to the host together with its signal values, without waiting for the device. The index
(:mod:`memtrain.families.online`) takes them in at the next update, when the visits become evidence. It takes those of
all processes in the order of batches and ranks, so that every process has the same index.

- The *picture*: the image or latents of the batch (:func:`memtrain.monitoring.batch_fields.pictures_of`) or from the
  loop, or else the clean latents computed from noisy latents, target and noise schedule.
- The *caption*: strings in the batch, rows of token ids, captions by key or from the host, or else the text embeddings,
  unless their encoder is trained. An empty caption is left out.

If images name the samples, equal images are one sample already, so only their captions are read.

A copy of a picture that is held out by weight must not be trained on, even at its first visit. So while samples are
held out by weight, pictures are compared on the device with the remembered held-out pictures
(:meth:`OnlineWatch.twins`), and their fingerprints with the forgotten ones. Two kinds of copies are not found: copies
within one interval between updates, and changed copies of a picture whose look was forgotten. The hash of their own
name decides on them.

Cost: measured by `benchmarks/online_families.py`. There is none after every sample was met often enough.
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
"""Number of visits under known keys, after which a message says if pictures are not recognised."""

Setting = bool | Literal["auto"]


def wanted(setting: Setting, host: Host) -> bool:
    """Return whether a run finds families during training, as set or else if the data have no families."""
    if setting != "auto":
        return bool(setting)
    return host.families is None and not hasattr(host.data, "families")


class OnlineWatch:
    """Shows the pictures and captions of batches to an index.

    Args:
        host: the host of the run.
        index: the growing index.
        held_out: function that says by its name whether a picture is held out by weight; None if none is.
        always: whether to compare pictures even if images name the samples.
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
        """Make the watch of a run; None if its index does not grow."""
        if not isinstance(host.families, OnlineFamilies):
            return None
        held_out = chosen.__contains__ if chosen.share else None
        return cls(host, host.families, held_out=held_out, always=options.settings.online_families is True)

    @property
    def _compares(self) -> bool:
        return self.always or not self.host.names.by_content

    # A batch

    def begin(self, batch: Any, keys: Sequence[str]) -> Tensor | None:
        """Read a batch before its forward pass and before any change of its captions.

        Returns:
            Its :meth:`twins`.
        """
        self._shown = ShownBatch()
        if self._settled(keys):
            return None
        self._shown.read(batch, len(keys), pictures=self._compares)
        return self.twins(torch.cat(self._shown.looks)) if self._shown.looks else None

    def show(self, *, images: Tensor | None, captions: Sequence[str] | None) -> None:
        """Take images and captions of the next rows from a loop."""
        self._shown.add(images=images, captions=captions)

    def take(self, part: Observation, prediction: Tensor, target: Tensor, *, rows: slice) -> Tensor | None:
        """Read rows whose loss is handed over.

        Returns:
            Their :meth:`twins`.
        """
        return self.twins(self._row_looks(part, prediction, target, rows=rows))

    def _row_looks(self, part: Observation, prediction: Tensor, target: Tensor, *, rows: slice) -> Tensor | None:
        """Return packed looks, `(b, 8 + D)`; None if the pictures are unknown."""
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
        """Find rows with a held-out picture, `(b,)` bool on their device; None if no such picture is known."""
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
        """Start the copy of a batch's looks and captions to the host."""
        settled = self._settled(observation.keys)
        self._pending.append(self._shown.visits(observation, self.host, batch=batch, settled=settled))
        self._shown = ShownBatch()

    def drop(self) -> None:
        """Forget a batch that was not finished or trained nothing."""
        self._shown = ShownBatch()

    def _settled(self, keys: Sequence[str]) -> bool:
        return all(map(self.index.settled, keys))

    # Updates and checkpoints

    def exchange(self, calibration: Calibration) -> None:
        """Add the visits of all processes to the index; call it on every process.

        Args:
            calibration: the calibration, in which a picture's evidence moves to the earlier picture that it copies.
        """
        own, self._pending, self._restored = self._unread(), [], []
        seen: list[Seen] = []
        for _, _, keys, packed, captions in sorted(self.host.gather(own), key=lambda part: part[:2]):
            rows = [None] * len(keys) if packed is None else [row if row.any() else None for row in packed]
            seen.extend(map(Seen, keys, rows, captions))
        # All visits are added at once, because an update searches the remembered pictures once.
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
        # Fingerprints of forgotten pictures come in thousands at rare times, and stay.
        forgotten = memory.hashes.dropped + len(memory.hashes)
        if forgotten != self._hashed:
            new = memory.hashes.since(max(0, self._hashed - memory.hashes.dropped))
            held = [fingerprint for fingerprint, name in new if held_out(name)]
            before = [] if self._held_hashes is None else [self._held_hashes.cpu()]
            every = torch.cat([*before, torch.tensor(held, dtype=torch.int64)])
            self._held_hashes, self._hashed = (every.sort().values if len(every) else None), forgotten

    def _tell(self) -> None:
        """Log once if pictures are not recognised although they come again."""
        share = self.index.recognised
        if self._told or share is None or len(self.index.positives) < JUDGED:
            return
        self._told = True
        if share < 0.5 and self.host.rank == 0:
            log.warning(
                "Only %.0f %% of the pictures that came again under their key would be recognised under another key. "
                "Their augmentation changes them too much, and other copies are missed. Remedy: memtrain scan",
                100 * share,
            )

    def finish(self, folder: Path) -> None:
        """Write `families.parquet` of the remembered samples to the folder of the records."""
        if self.host.rank == 0:
            keys = self.index.keys()
            self.index.families(keys).write(folder / "families.parquet", keys)

    def state_dict(self) -> dict[str, Any]:
        """Return the index and this process's visits since the last update."""
        return {"index": self.index.state_dict(), "pending": [list(part) for part in self._unread()]}

    def _unread(self) -> list[Part]:
        return self._restored + [visits.read() for visits in self._pending]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state, with the visits since the last update of the process that saved it."""
        self.index.load_state_dict(state["index"])
        self._restored = [tuple(part) for part in state["pending"]] if self.host.rank == 0 else []
        self._held_hashes, self._hashed = None, 0
        if self.held_out is not None:
            self._remember_held(self.held_out)
