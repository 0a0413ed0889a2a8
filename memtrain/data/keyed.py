"""Stable names for the samples of any dataset.

`keyed(dataset)` gives each sample a field `key`: the sample's own `key`, `__key__`, `file_name` or path where it has
one, else its index. A dict, or a row of Hugging Face's `datasets`, gets the field; a tuple or anything else becomes
`{"key": ..., "sample": ...}`, which a collate function takes apart.

Put it around the dataset after `map` and `with_transform`, which see rows as they were, and before shuffling and
splitting: an index is only a name as long as the order of the dataset is. For an iterable dataset, that is the order in
which it yields, so those that shuffle need names of their own. What remove columns (transformers' Trainer with
`remove_unused_columns`) or a collate function drop is dropped for good: let them keep `key`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from memtrain.errors import DataError

FIELDS = ("key", "__key__", "file_name", "image_path", "path", "filename")
"""Where a sample's own name is looked for."""


def keyed(dataset: Any, *, field: str = "key") -> Any:
    """The same dataset with a name in each sample.

    Args:
        dataset: map-style (`__getitem__` and `__len__`) or iterable.
        field: that the name is put into.

    Raises:
        DataError: if it is neither.
    """
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return KeyedDataset(dataset, field)
    if hasattr(dataset, "__iter__"):
        return KeyedIterable(dataset, field)
    raise DataError(
        f"A {type(dataset).__name__} is no dataset",
        expected="__getitem__ and __len__, or __iter__",
        remedy="give keyed(...) what the DataLoader gets",
    )


class KeyedDataset(Dataset[dict[str, Any]]):
    """A map-style dataset; all else is the dataset's own.

    Args:
        dataset: the dataset.
        field: that the name is put into.
    """

    def __init__(self, dataset: Any, field: str) -> None:
        self.dataset, self.field = dataset, field

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return named(self.dataset[index], index if index >= 0 else len(self) + index, field=self.field)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Several at once, where the dataset can."""
        fetch = getattr(self.dataset, "__getitems__", None)
        samples = [self.dataset[index] for index in indices] if fetch is None else fetch(indices)
        return [named(sample, index, field=self.field) for sample, index in zip(samples, indices, strict=True)]


class KeyedIterable(IterableDataset[dict[str, Any]]):
    """An iterable dataset.

    Args:
        dataset: the dataset.
        field: that the name is put into.
    """

    def __init__(self, dataset: Any, field: str) -> None:
        self.dataset, self.field = dataset, field

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        for index, sample in enumerate(self.dataset):
            place = index if worker is None or worker.num_workers == 1 else f"{worker.id}-{index}"
            yield named(sample, place, field=self.field)

    def set_epoch(self, epoch: int) -> None:
        """Passed on, where the dataset has it."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


def named(sample: Any, place: int | str, *, field: str = "key") -> dict[str, Any]:
    """A sample with its name.

    Args:
        sample: of a dataset.
        place: its index, where it has no name of its own.
        field: that the name is put into.
    """
    if not isinstance(sample, Mapping):
        return {field: str(place), "sample": sample}
    for name in (field, *FIELDS):
        own = sample.get(name)
        if (isinstance(own, str) and own) or (isinstance(own, int) and not isinstance(own, bool)):
            return {**sample, field: str(own)}
    path = sample.get("image", None)
    # Rows of `datasets` that are not decoded yet.
    path = path.get("path") if isinstance(path, Mapping) else None
    return {**sample, field: path if isinstance(path, str) and path else str(place)}
