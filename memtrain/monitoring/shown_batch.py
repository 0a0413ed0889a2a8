"""What one batch shows of its samples' families: packed looks of its pictures, and its captions or their hashes.

Looked at first is the batch, then what a loop hands over of it, row by row, and at last what the denoiser was given.
See :mod:`memtrain.monitoring.online_watch`, which sends it to the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memtrain.families.figures import caption_name, embedding_hashes, looks, row_hashes
from memtrain.families.online_captions import UNREAD
from memtrain.functional.diffusion import clean_latents
from memtrain.models.observation import Observation
from memtrain.models.transfer import HostCopy
from memtrain.monitoring.batch_fields import captions_of, field_of, pictures_of, token_rows
from memtrain.monitoring.heldout_latents import CLEAR
from memtrain.monitoring.host import Host

Part = tuple[int, int, list[str], Tensor | None, list[str | None]]
"""What one process saw of a batch: number, rank, keys, packed looks (zeros where there is none), captions."""


@dataclass
class ShownVisits:
    """What one batch showed, on its way to the host.

    Attributes:
        batch: batches since the start of training.
        rank: process.
        keys: B sample keys.
        looks: `(B, 8 + D)`, zeros where a picture is not seen; None where none is.
        captions: B hashes, None where there is none.
        hashes: `(B,)` in place of captions, 0 where there is none.
        unread: whether it is unknown which of these is the empty caption.
    """

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
        packed = None if self.looks is None else self.looks.read().clone()
        return self.batch, self.rank, self.keys, packed, captions


@dataclass
class ShownBatch:
    """What is known of one batch so far, by row.

    Attributes:
        looks: parts of packed looks.
        captions: hashes, None for an empty caption.
        hashes: `(B,)` of captions, in place of these; 0 for an empty one.
        unread: whether it is unknown which of these is the empty caption.
    """

    looks: list[Tensor] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    hashes: Tensor | None = None
    unread: bool = False

    def read(self, batch: Any, count: int, *, pictures: bool) -> None:
        """Look at a batch of `count` samples, as the training step gets it; at its pictures where these are wanted."""
        images = pictures_of(batch, count) if pictures else None
        if images is not None and (packed := looks(images)) is not None:
            self.looks = [packed]
        if (captions := captions_of(batch, count)) is not None:
            self.captions = [caption_name(text) for text in captions]
        elif (rows := token_rows(batch, count)) is not None:
            ids, empty = rows
            self.hashes = row_hashes(ids).masked_fill(empty, 0)
            self.unread = field_of(batch, "prompt_length") is None

    def add(self, *, images: Tensor | None, captions: Sequence[str] | None) -> None:
        """Take what a loop hands over of its next rows."""
        if images is not None and (packed := looks(images)) is not None:
            self.looks.append(packed)
        if captions is not None:
            self.captions += [caption_name(text) for text in captions]

    def rows(self) -> int:
        """Rows whose pictures are known."""
        return sum(map(len, self.looks))

    def visits(self, observation: Observation, host: Host, *, batch: int, settled: bool) -> ShownVisits:
        """Start the way to the host of what the batch showed, embeddings and captions that the host knows included.

        Args:
            observation: of the batch, complete.
            host: the surroundings of the run.
            batch: batches since the start of training.
            settled: whether nothing more has to be seen of its samples.
        """
        keys = list(observation.keys)
        packed = torch.cat(self.looks) if self.rows() == len(keys) else None
        captions = self.captions
        if len(captions) != len(keys):
            captions = [caption_name(host.captions.get(key, "")) for key in keys]
        hashes, unread = None if any(captions) else self.hashes, self.unread
        if hashes is None and not any(captions) and not self.captions and not observation.text_trained and not settled:
            hashes, unread = embedding_hashes(observation.text_embeddings), True
        if observation.caption_dropped:
            dropped = list(observation.caption_dropped)
            captions = [None if gone else name for name, gone in zip(captions, dropped, strict=True)]
            if hashes is not None:
                hashes = hashes.masked_fill(torch.tensor(dropped).to(hashes.device), 0)
        return ShownVisits(
            batch,
            host.rank,
            keys,
            None if packed is None else HostCopy(packed),
            captions,
            None if hashes is None else HostCopy(hashes),
            unread,
        )


def recovered(
    part: Observation, prediction: Tensor, target: Tensor, *, levels: tuple[Tensor, str] | None
) -> Tensor | None:
    """Packed looks of the clean latents that follow from noisy latents and target; zeros where rounding is blown up.

    Args:
        part: rows of an observation.
        prediction: `(b, ...)` as handed over.
        target: `(b, ...)`.
        levels: of :func:`memtrain.monitoring.heldout_latents.noise_levels`.

    Returns:
        `(b, 8 + D)`; None where they do not follow.
    """
    noisy = part.noisy_latents
    if levels is None or not prediction.shape == target.shape == noisy.shape:
        return None
    steps = part.timesteps.to(noisy.device)
    level = levels[0].to(noisy.device)[steps.long().clamp(0, len(levels[0]) - 1)]
    packed = looks(clean_latents(noisy.float(), target.detach().float(), level, prediction_type=levels[1]))
    if packed is not None and noisy.dtype.itemsize < 4:
        packed = packed.masked_fill((steps >= CLEAR * len(levels[0]))[:, None], 0)
    return packed
