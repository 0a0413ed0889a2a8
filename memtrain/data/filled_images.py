"""A data module whose cache on disk may be filled while it is trained on (:mod:`memtrain.data.filling`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from memtrain.data.collating import TEXT
from memtrain.data.dataset import Batch
from memtrain.data.filling import Filling, together
from memtrain.data.masked_images import MaskedImages
from memtrain.data.source import SampleSource

log = logging.getLogger(__name__)


class FilledImages(MaskedImages):
    """Images with masks, of whose latents and embeddings some are made when they are first visited.

    Args:
        visiting: as of :class:`MaskedImages`.
    """

    def __init__(self, **visiting: Any) -> None:
        super().__init__(**visiting)
        self._filling: Filling | None = None
        self._looked_at: list[SampleSource] = []

    @property
    def fills(self) -> bool:
        """Whether the cache is filled in training."""
        return self.cache is not None and self.cache.fill == "training"

    def _fill(self, filling: Filling, *, rank: int) -> None:
        """Fill the cache from here on."""
        self._filling, self._token_fields = filling, tuple(self._empty_caption)
        for source in self._looked_at:
            if source.kept_looks is not None:
                # Before there are loader processes, which share what is known from here on.
                source.kept_looks.rank = rank
                source.kept_looks.find(source)
        filling.serve(self._built())

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Let embeddings that are to be made be those of the empty caption for now; the rest as of MaskedImages."""
        if TEXT not in batch:
            return super().on_before_batch_transfer(batch, dataloader_idx)
        part = batch.pop(TEXT)
        names: Sequence[str] = part["names"]
        count = sum(map(bool, names))
        empty = {name: value for name, value in self._empty_caption.items() if name not in self._token_fields}
        placeholders = {name: value.expand(count, *value.shape[1:]) for name, value in empty.items()}
        batch |= together(names, part["known"], placeholders)
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        # A visit without its caption needs none of its embeddings.
        names = [name if text else "" for name, text in zip(names, batch["caption"], strict=True)]
        return {**batch, TEXT: {"names": names}} if any(names) else batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Make what the batch lacks, on the device."""
        return batch if self._filling is None else self._filling.complete(batch, self._token_fields)

    def _keep(self) -> None:
        """Write what was made, and seen of images, since the last time."""
        if self._filling is None:
            return
        self._filling.flush()
        for source in self._looked_at:
            if source.kept_looks is not None:
                try:
                    source.kept_looks.keep()
                except OSError as error:  # a full disk: the next start decodes these images again
                    log.warning("What was seen of the images of %s cannot be kept: %s", source.path, error)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the data, after what was made so far is kept."""
        self._keep()
        return super().state_dict()

    def teardown(self, stage: str) -> None:
        """Keep what was made."""
        self._keep()

    def on_exception(self, exception: BaseException) -> None:
        """Keep what was made."""
        self._keep()
