"""Sample replacement: a flagged sample gives its place in the batch to another training sample.

This method is ours. A skipped sample leaves the batch with less to learn from. If two thirds of the draws are memorized
images, two thirds of the work of every step are lost. Here a sample that was not flagged takes the place before the
forward pass, so every step trains on a full batch. The effect is the same as removing the flagged sample from the data
at that moment. Several candidates are drawn for each place, and the one whose picture has the fewest visits takes it. A
picture that is drawn too often would be memorized next. No file of a flagged picture or caption is drawn, even if it
was never visited. If each batch has one shape (aspect-ratio buckets), substitutes have this shape. Regularisation
images are never drawn.

A flagged sample stays removed and is not watched any more. Its visits end in the records.

Cost: reading the substitutes, from the cache of latents or from their files. Suggested: the default of the embedded
example. Cannot: work without a data module that gives access to single samples (`train_dataset` with `unique()`, as in
TextImageDataModule). Use sample skipping with other data. The caption dropout of the visit is kept.
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
"""Beginnings of the names of fields that depend on the caption: tokens, their number and mask, embeddings."""
CANDIDATES = 8
"""Number of samples drawn for a place. The one whose picture has the fewest visits so far takes it."""


class SampleReplacement(MitigationCallback):
    """Put other samples in the place of flagged ones.

    Args:
        seed: seed of the choice of substitutes.
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
        """State that the rule puts other samples into the batch."""
        return Effects(changes_batch=True, changes_samples=True)

    def open(self, host: Host) -> None:
        """Refuse data without access to single samples."""
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
        # Regularisation images have their own share of the batches.
        self._others = {key for key in self._keys if groups.get(key) == REGULARISATION}
        self._flagged = -1

    def prepare(self, batch: dict[str, Any], flags: Flags, *, tokenizer: Any, number: int) -> None:
        """Replace the flagged rows of the batch; a row without a substitute stays."""
        rows, items = [], []
        for row, flagged in enumerate(flags.ever.tolist()):
            if flagged:
                # This is the row's place in the joined batches of all processes. Copies of one sample may be on several
                # processes, and each copy needs its own substitute.
                place = self._rank * len(flags.ever) + row
                known = self._row_of.get(flags.keys[row])
                shape = None if known is None else self._shapes[known]
                chosen = self._substitute(seed_of(self.seed, number, place), flags, shape)
                if chosen is not None:
                    rows.append(row)
                    # If the visits of a sample differ, the substitute gets its own visit.
                    varies = getattr(self._samples, "varies", False)
                    items.append(self._whole(self._samples[Visit(chosen, number) if varies else chosen], batch))
        if rows:
            self._put(batch, rows, items)

    def _whole(self, item: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """Add the fields that a batch gets on its way to the device, such as latents that are not cached yet."""
        collate = getattr(self._samples, "collate", None)
        if collate is None or batch.keys() <= item.keys():
            return item
        return {name: values[0] for name, values in self._host.moved(collate([item])).items()}

    def _substitute(self, seed: int, flags: Flags, shape: Any) -> int | None:
        """Draw some samples of this shape that are not flagged; return the index of the one with fewest visits."""
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
                expected="batches with the same fields as the samples of the data set",
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
                    f"The batch's field {name!r} is a {type(values).__name__}, so no sample in it can be replaced",
                    expected="tensors and lists with a sample in each row",
                    remedy="use SampleSkipping",
                )

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """Return 0 for flagged samples without a substitute and 1 for the others, `(B,)`."""
        return 1.0 - flags.ever.float()
