"""Some samples of a dataset in the batches in which all of them would come, without the others being read."""

from __future__ import annotations

from collections.abc import Sequence

from memtrain.data.dataset import CaptionedImages
from memtrain.data.one_shape import OneShape


class SomeSamples(OneShape):
    """Batches of some samples, each once; each batch holds what is wanted of a batch of all samples.

    Args:
        dataset: with each sample once.
        batch_size: samples of a batch of all, at most.
        rows: of `dataset`; default all.
        part: number of a part of the batches, dealt out in turn, and how many there are.
    """

    def __init__(
        self,
        dataset: CaptionedImages,
        batch_size: int,
        *,
        rows: Sequence[int] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(dataset, batch_size)
        if rows is not None:
            wanted = frozenset(rows)
            some = ([row for row in batch if row in wanted] for batch in self.batches)
            self.batches = [batch for batch in some if batch]
        number, parts = part
        self.batches = self.batches[number::parts]

    @property
    def rows(self) -> list[int]:
        """The rows that are read."""
        return [row for batch in self.batches for row in batch]
