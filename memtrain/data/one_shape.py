"""Loaders of samples that occur once each, in batches of one shape."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, Dataset

from memtrain.data.collating import collated
from memtrain.data.dataset import Batch, CaptionedImages


class OneShape(Dataset[Batch]):
    """Batches of a dataset's samples, each once, in fixed order. Each batch has one shape.

    Args:
        dataset: a dataset with each sample once.
        batch_size: the largest number of samples in a batch.
    """

    def __init__(self, dataset: CaptionedImages, batch_size: int) -> None:
        self.dataset = dataset
        self.batches = [
            rows[start : start + batch_size] for rows in dataset.by_shape() for start in range(0, len(rows), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        batch: Batch = collated([self.dataset[row] for row in self.batches[index]])
        return batch


def loader(dataset: CaptionedImages, *, batch_size: int, **options: Any) -> DataLoader[Batch]:
    """Make a DataLoader of samples that occur once each, collated as their items need. Each batch has one shape."""
    if len(set(dataset.shapes)) > 1:
        return DataLoader(OneShape(dataset, batch_size), batch_size=None, **options)
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collated, **options)
