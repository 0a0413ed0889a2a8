"""A data module that fills its cache on disk while it is trained on (:mod:`memtrain.data.filling`)."""

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
    """Images with masks whose missing latents and embeddings are made at their first visit.

    Args:
        visiting: the options of :class:`MaskedImages`.
    """

    def __init__(self, **visiting: Any) -> None:
        super().__init__(**visiting)
        self._filling: Filling | None = None
        self._looked_at: list[SampleSource] = []

    @property
    def fills(self) -> bool:
        """Whether training fills the cache."""
        return self.cache is not None and self.cache.fill == "training"

    def _fill(self, filling: Filling, *, rank: int) -> None:
        """Fill the cache from now on."""
        self._filling, self._token_fields = filling, tuple(self._empty_caption)
        for source in self._looked_at:
            if source.kept_looks is not None:
                # This comes before the loader processes start, because they share what is known at that time.
                source.kept_looks.rank = rank
                source.kept_looks.find(source)
        filling.serve(self._built())

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Give missing embeddings the values of the empty caption for now, then do the work of MaskedImages."""
        if TEXT not in batch:
            return super().on_before_batch_transfer(batch, dataloader_idx)
        part = batch.pop(TEXT)
        names: Sequence[str] = part["names"]
        count = sum(map(bool, names))
        empty = {name: value for name, value in self._empty_caption.items() if name not in self._token_fields}
        placeholders = {name: value.expand(count, *value.shape[1:]) for name, value in empty.items()}
        batch |= together(names, part["known"], placeholders)
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        # A visit whose caption was dropped needs no embeddings of that caption.
        names = [name if text else "" for name, text in zip(names, batch["caption"], strict=True)]
        return {**batch, TEXT: {"names": names}} if any(names) else batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Make what the batch lacks, on the device."""
        return batch if self._filling is None else self._filling.complete(batch, self._token_fields)

    def _keep(self) -> None:
        """Write the entries that were made, and the looks of images, since the last time."""
        if self._filling is None:
            return
        self._filling.flush()
        for source in self._looked_at:
            if source.kept_looks is not None:
                try:
                    source.kept_looks.keep()
                except OSError as error:  # a full disk: the next start decodes these images again
                    log.warning("The sizes and hashes of the images of %s cannot be kept: %s", source.path, error)

    def state_dict(self) -> dict[str, Any]:
        """Write what was made so far, and return the data's part of a checkpoint."""
        self._keep()
        return super().state_dict()

    def teardown(self, stage: str) -> None:
        """Write what was made."""
        self._keep()

    def on_exception(self, exception: BaseException) -> None:
        """Write what was made."""
        self._keep()
