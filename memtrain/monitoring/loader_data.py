"""Plain data loaders for `trainer.fit(module, train, validation)` as measurable data, without a data module.

The validation samples are the held-out samples. Batches come from the loaders' own collate functions, so the module's
`sample_loss` gets the same batches as its training step. Only map-style datasets give access to single samples. Another
dataset counts as missing, and an error names it if it is needed
(:func:`memtrain.monitoring.data_protocol.lacking_to_measure`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, default_collate


class LoaderSamples:
    """The samples of one loader's dataset, each once, in the order of the dataset.

    Args:
        loader: a loader with a map-style dataset.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.dataset: Any = loader.dataset
        self.collate: Callable[[list[Any]], Any] = loader.collate_fn or default_collate
        self.batch_size = loader.batch_size or 1

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def unique(self) -> LoaderSamples:
        """Return the object itself, because a dataset holds each sample once."""
        return self


class LoaderData:
    """Training and validation loaders in the form of a data module.

    Args:
        train: the loader for training.
        validation: the loader for validation.
    """

    def __init__(self, train: Any, validation: Any) -> None:
        self.train_dataset, self.heldout_dataset = _samples(train), _samples(validation)

    def unique_dataloader(self, dataset: LoaderSamples) -> DataLoader[Any]:
        """Return batches of each sample of `dataset` once, in fixed order."""
        samples: Any = dataset
        return DataLoader(samples, batch_size=dataset.batch_size, collate_fn=dataset.collate)


def _samples(loaders: Any) -> LoaderSamples | None:
    """Return the samples of a loader, or of a list with one loader; None without access to single samples."""
    if isinstance(loaders, list | tuple) and len(loaders) == 1:
        loaders = loaders[0]
    if not isinstance(loaders, DataLoader):
        return None
    dataset: Any = loaders.dataset
    by_index = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return LoaderSamples(loaders) if by_index and not isinstance(dataset, IterableDataset) else None
