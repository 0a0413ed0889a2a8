"""Some samples of a dataset in the batches of all samples. The other samples are not read."""

from __future__ import annotations

from collections.abc import Sequence

from memtrain.data.dataset import CaptionedImages
from memtrain.data.one_shape import OneShape


class SomeSamples(OneShape):
    """Batches of some samples, each once. A batch holds the wanted part of one batch of all samples.

    Args:
        dataset: a dataset with each sample once.
        batch_size: the largest number of samples in a batch of all samples.
        rows: the wanted rows of `dataset`; by default all.
        part: the number of a part of the batches, and the number of parts. Parts take batches in turn.
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
