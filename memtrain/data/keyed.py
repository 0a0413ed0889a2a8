"""Stable names for the samples of any dataset.

`keyed(dataset)` gives each sample a field `key`. The key is the sample's own `key`, `__key__`, `file_name` or path if
it has one, and its index otherwise. A dict, or a row of Hugging Face's `datasets`, gets the field. A tuple or another
object becomes `{"key": ..., "sample": ...}`, which a collate function takes apart.

Call it after `map` and `with_transform`, which see rows as they were, and before shuffling and splitting. An index
names a sample only as long as the order of the dataset stays the same. The index of an iterable dataset is the order in
which it yields, so a dataset that shuffles needs names of its own. Some code removes columns (transformers' Trainer
with `remove_unused_columns`, or a collate function). Let it keep `key`, because a removed key is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from memtrain.errors import DataError

FIELDS = ("key", "__key__", "file_name", "image_path", "path", "filename")
"""Fields that may hold a sample's own name, in the order of preference."""


def keyed(dataset: Any, *, field: str = "key") -> Any:
    """Return the same dataset with a name in each sample.

    Args:
        dataset: a map-style dataset (`__getitem__` and `__len__`) or an iterable one.
        field: the field that gets the name.

    Raises:
        DataError: if the dataset is neither map-style nor iterable.
    """
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return KeyedDataset(dataset, field)
    if hasattr(dataset, "__iter__"):
        return KeyedIterable(dataset, field)
    raise DataError(
        f"A {type(dataset).__name__} is not a dataset",
        expected="__getitem__ and __len__, or __iter__",
        remedy="call keyed(...) with the dataset of the DataLoader",
    )


class KeyedDataset(Dataset[dict[str, Any]]):
    """A map-style dataset with names. All other attributes are those of the dataset.

    Args:
        dataset: the dataset.
        field: the field that gets the name.
    """

    def __init__(self, dataset: Any, field: str) -> None:
        self.dataset, self.field = dataset, field

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return named(self.dataset[index], index if index >= 0 else len(self) + index, field=self.field)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Return several samples at once if the dataset can do so."""
        fetch = getattr(self.dataset, "__getitems__", None)
        samples = [self.dataset[index] for index in indices] if fetch is None else fetch(indices)
        return [named(sample, index, field=self.field) for sample, index in zip(samples, indices, strict=True)]


class KeyedIterable(IterableDataset[dict[str, Any]]):
    """An iterable dataset with names.

    Args:
        dataset: the dataset.
        field: the field that gets the name.
    """

    def __init__(self, dataset: Any, field: str) -> None:
        self.dataset, self.field = dataset, field

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        for index, sample in enumerate(self.dataset):
            place = index if worker is None or worker.num_workers == 1 else f"{worker.id}-{index}"
            yield named(sample, place, field=self.field)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the dataset if it takes one."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


def named(sample: Any, place: int | str, *, field: str = "key") -> dict[str, Any]:
    """Return a sample with its name.

    Args:
        sample: a sample of a dataset.
        place: its index, which is the name of a sample without its own name.
        field: the field that gets the name.
    """
    if not isinstance(sample, Mapping):
        return {field: str(place), "sample": sample}
    for name in (field, *FIELDS):
        own = sample.get(name)
        if (isinstance(own, str) and own) or (isinstance(own, int) and not isinstance(own, bool)):
            return {**sample, field: str(own)}
    path = sample.get("image", None)
    # Rows of `datasets` that are not decoded yet hold a path.
    path = path.get("path") if isinstance(path, Mapping) else None
    return {**sample, field: path if isinstance(path, str) and path else str(place)}
