"""Sample replacement: a flagged sample gives its place in the batch to another training sample.

Ours. Skipping a sample leaves the batch with less to learn from, all the more when duplicates fill it: where two
thirds of the draws are memorized images, two thirds of the work of every step are lost. Here another sample, drawn from
those that were not flagged, takes the place before the forward pass, so that every step trains on a full batch. It is
what removing the sample from the data from that moment on would do. Of a few samples drawn for a place the one whose
picture has the fewest visits takes it: a picture that is drawn too often would be the next to be memorized. No file of
a flagged picture or caption is drawn, whether it was ever visited or not. Where batches are of one shape each
(aspect-ratio buckets), so are the samples that are drawn. Regularisation images are not.

A flagged sample is removed for good and no longer watched; its visits end in the records.

Cost: reading the substitutes, from the cache of latents or from their files. Suggested: the default of the embedded
example. Cannot: work without a data module that gives access to single samples (`train_dataset` with `unique()`, as
TextImageDataModule has it); use sample skipping there. Caption dropout of the visit is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.data.dataset import Visit
from memtrain.errors import ConfigurationError
from memtrain.evidence.flags import Flags
from memtrain.functional.keyed_draws import seed_of, uniform
from memtrain.models.observation import Observation
from memtrain.models.transfer import to_device
from memtrain.monitoring.data_protocol import by_key, known_samples
from memtrain.monitoring.host import Host
from memtrain.monitoring.mitigation import Effects
from memtrain.records import REGULARISATION

CAPTION = ("caption", "input_ids", "prompt_", "text_", "pooled_")
"""How the fields begin that depend on the caption: tokens, their number and mask, embeddings."""
CANDIDATES = 8
"""Samples that are drawn for a place; the one whose picture has the fewest visits so far takes it."""


class SampleReplacement(MitigationCallback):
    """Put other samples in the place of flagged ones.

    Args:
        seed: of the choice of substitutes.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._samples: Any = None
        self._keys: list[str] = []
        self._others: set[str] = set()
        self._shapes: list[Any] = []
        self._row_of: dict[str, int] = {}
        self._flagged = -1
        self._open: dict[Any, list[int]] = {}
        self._rank = 0

    def effects(self) -> Effects:
        """It puts other samples into the batch."""
        return Effects(changes_batch=True, changes_samples=True)

    def open(self, host: Host) -> None:
        """Refuse data that give no access to single samples."""
        dataset: Any = getattr(host.data, "train_dataset", None)
        if not hasattr(dataset, "unique") or not known_samples(host.data, "train"):
            raise ConfigurationError(
                "SampleReplacement needs other samples to put in the place of flagged ones",
                expected="a data module whose train_dataset has samples and unique(), such as TextImageDataModule",
                remedy="use SampleSkipping",
            )
        self._host, self._rank = host, host.rank
        self._samples = dataset.unique()
        self._keys = [sample.key for sample in self._samples.samples]
        self._row_of = {key: row for row, key in enumerate(self._keys)}
        self._shapes = getattr(self._samples, "shapes", None) or [None] * len(self._keys)
        groups = by_key(host.data, "groups")
        # What is mixed in to keep the model as it is has a share of the batches of its own.
        self._others = {key for key in self._keys if groups.get(key) == REGULARISATION}
        self._flagged = -1

    def prepare(self, batch: dict[str, Any], flags: Flags, *, tokenizer: Any, number: int) -> None:
        """Replace the flagged rows of the batch; a row for which there is no substitute stays."""
        rows, items = [], []
        for row, flagged in enumerate(flags.ever.tolist()):
            if flagged:
                # The row's place in the batches of all processes, one after the other: copies of one sample, which may
                # be on several of them, need substitutes of their own.
                place = self._rank * len(flags.ever) + row
                known = self._row_of.get(flags.keys[row])
                shape = None if known is None else self._shapes[known]
                chosen = self._substitute(seed_of(self.seed, number, place), flags, shape)
                if chosen is not None:
                    rows.append(row)
                    # Of data whose visits differ, a visit of its own.
                    varies = getattr(self._samples, "varies", False)
                    items.append(self._whole(self._samples[Visit(chosen, number) if varies else chosen], batch))
        if rows:
            self._put(batch, rows, items)

    def _whole(self, item: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """An item with what a batch gets on its way to the device, such as latents that are not kept yet."""
        collate = getattr(self._samples, "collate", None)
        if collate is None or batch.keys() <= item.keys():
            return item
        return {name: values[0] for name, values in self._host.moved(collate([item])).items()}

    def _substitute(self, seed: int, flags: Flags, shape: Any) -> int | None:
        """Index of a sample of this shape that is not flagged: of some drawn at random, that of the fewest visits."""
        if len(flags.everyone) != self._flagged:
            self._flagged, self._open = len(flags.everyone), {}
            for index, key in enumerate(self._keys):
                if key not in flags.everyone and key not in self._others:
                    self._open.setdefault(self._shapes[index], []).append(index)
        found = self._open.get(shape, [])
        if not found:
            return None
        drawn = [found[int(len(found) * share)] for share in uniform([seed], CANDIDATES)[0].tolist()]
        visits = flags.visits([self._keys[index] for index in drawn])
        return min(zip(visits, range(CANDIDATES), drawn, strict=True))[2]

    def _put(self, batch: dict[str, Any], rows: list[int], items: list[dict[str, Any]]) -> None:
        missing = sorted(set(batch) - set(items[0]))
        if missing:
            raise ConfigurationError(
                f"A substitute has no {missing}, which the batch has",
                expected="batches that hold what the data set's samples hold",
                remedy="use SampleSkipping",
            )
        dropped = {row for row in rows if batch.get("caption", [None] * (row + 1))[row] == ""}
        for name, values in batch.items():
            put = [
                (row, item[name])
                for row, item in zip(rows, items, strict=True)
                if not (row in dropped and name.startswith(CAPTION))
            ]
            if isinstance(values, Tensor) and put:
                where = to_device(torch.tensor([row for row, _ in put]), values.device)
                new = torch.stack([torch.as_tensor(value) for _, value in put]).to(values.dtype)
                values[where] = to_device(new, values.device)
            elif isinstance(values, list):
                for row, value in put:
                    values[row] = value
            elif put:
                raise ConfigurationError(
                    f"The batch's field {name!r} is a {type(values).__name__}, in which no sample can be replaced",
                    expected="tensors and lists with a sample in each row",
                    remedy="use SampleSkipping",
                )

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """0 for flagged samples that found no substitute, 1 for the others, `(B,)`."""
        return 1.0 - flags.ever.float()
