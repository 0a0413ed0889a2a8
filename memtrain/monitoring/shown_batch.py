"""The information in a batch about families: packed looks of its pictures, and its captions or their hashes.

The batch is read first, then the rows that a loop hands over, and at last the inputs of the denoiser. See
:mod:`memtrain.monitoring.online_watch`, which sends all of it to the index.
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
"""One process's part of a batch: number, rank, keys, packed looks (zeros without a look) and captions."""


@dataclass
class ShownVisits:
    """Looks and captions of one batch, on their way to the host.

    Attributes:
        batch: batches since the start of training.
        rank: rank of the process.
        keys: B sample keys.
        looks: packed looks `(B, 8 + D)`, zeros for an unknown picture; None without pictures.
        captions: B hashes, None without a caption.
        hashes: hashes `(B,)` instead of captions, 0 without a caption.
        unread: whether the hash of the empty caption is unknown.
    """

    batch: int
    rank: int
    keys: list[str]
    looks: HostCopy | None
    captions: list[str | None]
    hashes: HostCopy | None
    unread: bool

    def read(self) -> Part:
        """Read the values on the host."""
        captions = self.captions
        if self.hashes is not None:
            mark = UNREAD if self.unread else ""
            captions = [f"{mark}{value & (2**64 - 1):016x}" if value else None for value in self.hashes.read().tolist()]
        packed = None if self.looks is None else self.looks.read().clone()
        return self.batch, self.rank, self.keys, packed, captions


@dataclass
class ShownBatch:
    """The known looks and captions of one batch so far, by row.

    Attributes:
        looks: parts of packed looks.
        captions: hashes, None for an empty caption.
        hashes: hashes `(B,)` instead of captions, 0 for an empty caption.
        unread: whether the hash of the empty caption is unknown.
    """

    looks: list[Tensor] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    hashes: Tensor | None = None
    unread: bool = False

    def read(self, batch: Any, count: int, *, pictures: bool) -> None:
        """Read a batch of `count` samples, as the training step gets it, with its `pictures` if needed."""
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
        """Take images and captions of the next rows from a loop."""
        if images is not None and (packed := looks(images)) is not None:
            self.looks.append(packed)
        if captions is not None:
            self.captions += [caption_name(text) for text in captions]

    def rows(self) -> int:
        """Return the number of rows with known pictures."""
        return sum(map(len, self.looks))

    def visits(self, observation: Observation, host: Host, *, batch: int, settled: bool) -> ShownVisits:
        """Start the copy of looks and captions to the host, with embeddings and captions that the host knows.

        Args:
            observation: the complete observation of the batch.
            host: the host of the run.
            batch: number of batches since the start of training.
            settled: whether its samples need no further look.
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
    """Return packed looks of clean latents, computed from noisy latents and target; zeros if rounding errors are large.

    Args:
        part: rows of an observation.
        prediction: the prediction `(b, ...)`.
        target: the target `(b, ...)`.
        levels: the result of :func:`memtrain.monitoring.heldout_latents.noise_levels`.

    Returns:
        The looks `(b, 8 + D)`; None if they cannot be computed.
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
