"""The visits of a data module's samples: their number, their batches, their order and their captions."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from memtrain.data.bucket_sampler import BucketSampler
from memtrain.data.caption_choice import Captions
from memtrain.data.continuation import VisitSampler, compared, go_on, state_of
from memtrain.data.dataset import Batch, CaptionedImages
from memtrain.data.disk_cache import Cache
from memtrain.data.framing import Augment, Buckets, without_small
from memtrain.data.one_shape import loader
from memtrain.data.regularisation import Regularisation
from memtrain.data.sampler import InOrder, ResumableDistributedSampler, ResumableLoader, fitting_batch
from memtrain.data.some_samples import SomeSamples
from memtrain.errors import ConfigurationError
from memtrain.functional.keyed_draws import seed_of_text, uniform

log = logging.getLogger(__name__)


class VisitedImages(LightningDataModule):
    """Visits of samples in batches, in an order that resumes exactly, with caption dropout.

    A subclass sets `train_dataset` and `heldout_dataset`.

    Args:
        batch_size: the number of samples per step and process.
        num_workers: the number of loader processes; 0 is fastest with cached latents.
        caption_dropout: the share of visits with an empty caption, for classifier-free guidance.
        seed: the seed of the order of visits, of caption dropout and of all other draws for a visit; by default the
            seed of `seed_everything`.
        tokenizer: the folder of the tokenizer; by default the module's own tokenizer.
        captions: the choice among a sample's captions, trigger words, and the caption of images without one.
        buckets: aspect-ratio buckets, which keep the shape of each image nearly as it is; by default images are
            squares.
        augment: random crops and flips.
        cache: the cache of latents and text embeddings on disk.
        repeats: the visits of each image per epoch: a number, patterns of keys with numbers, or `from_folders` for
            folders named `10_name`.
        regularisation: images that are mixed in to keep the model as it is (prior preservation).

    Raises:
        ConfigurationError: if the batch size or the share is out of range.
    """

    def __init__(
        self,
        *,
        batch_size: int = 16,
        num_workers: int = 0,
        caption_dropout: float = 0.0,
        seed: int | None = None,
        tokenizer: str | None = None,
        captions: Captions | None = None,
        buckets: Buckets | None = None,
        augment: Augment | None = None,
        cache: Cache | None = None,
        repeats: int | str | dict[str, int] = 1,
        regularisation: Regularisation | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= caption_dropout < 1:
            raise ConfigurationError(
                f"caption_dropout={caption_dropout}",
                expected="a share of at least 0 and below 1",
                remedy="correct --data.init_args.caption_dropout",
            )
        if batch_size < 1:
            raise ConfigurationError(
                f"batch_size={batch_size}", expected="at least 1", remedy="raise --data.init_args.batch_size"
            )
        self.batch_size, self.num_workers, self.caption_dropout = batch_size, num_workers, caption_dropout
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.tokenizer_path = tokenizer
        self.captions, self.buckets, self.augment = captions or Captions(), buckets, augment
        self.cache, self.repeats, self.regularisation = cache, repeats, regularisation
        self.train_dataset: CaptionedImages | None = None
        self.heldout_dataset: CaptionedImages | None = None
        self.run_folder: str | Path | None = None
        self._empty_caption: dict[str, Tensor] = {}
        self._sampler: VisitSampler | None = None
        self._begun: Callable[[VisitSampler], None] | None = None
        self._samples: dict[str, Tensor] | None = None

    @property
    def bucketed(self) -> bool:
        """Whether images have several shapes."""
        return self.buckets is not None and self.buckets.enabled

    def _kept_in(self, name: str) -> Path | None:
        """Return the folder of what the next start reads again: in the cache, or else in the run folder."""
        root = self._root()
        place = Path(self.cache.folder) if self.cache is not None else root and root / "index"
        return place and place / name

    def _root(self) -> Path | None:
        root = self.run_folder or getattr(self.trainer, "default_root_dir", None)
        return None if root is None else Path(root)

    def _built(self) -> tuple[CaptionedImages, CaptionedImages]:
        if self.train_dataset is None or self.heldout_dataset is None:
            raise ConfigurationError("The data module was not set up", remedy="call setup() or build() first")
        return self.train_dataset, self.heldout_dataset

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of this process's shuffled visits, continued where a checkpoint left off."""
        train, _ = self._built()
        trainer, sampler = self.trainer, self._new_sampler()
        if trainer is not None:
            _require_validation_in_an_epoch(trainer, batches=len(sampler) // self.batch_size)
        resumed = trainer is not None and trainer.ckpt_path is not None
        if resumed and self._begun is not None:
            self._begun(sampler)
        elif resumed and self._sampler is None:
            log.warning(
                "The checkpoint names neither its data nor its batch size. The run continues as if both were the same."
            )
        self._sampler = sampler
        return ResumableLoader(
            train,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=True,
            collate_fn=train.collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _new_sampler(self) -> VisitSampler:
        train, trainer = self._built()[0], self.trainer
        processes = trainer.world_size if trainer is not None else 1
        self._fit_batch(processes)
        common: dict[str, Any] = {
            "num_replicas": processes,
            "rank": trainer.global_rank if trainer is not None else 0,
            "seed": self.seed,
            "place": self._place if trainer is not None else None,
        }
        if self.bucketed:
            return BucketSampler(train, batch_size=self.batch_size, **common)
        if trainer is not None and getattr(trainer, "overfit_batches", False):
            return InOrder(train, batch_size=self.batch_size, place=self._place)
        sampler = ResumableDistributedSampler(train, **common)
        sampler.batch_size = self.batch_size
        return sampler

    def _fit_batch(self, processes: int) -> None:
        """Lower the batch size to the visits of an epoch. With several shapes, a batch must be full."""
        train, _ = self._built()
        visits = len(train) // processes if self.bucketed else math.ceil(len(train) / processes)
        self.batch_size = fitting_batch(self.batch_size, visits)

    def _settle_shapes(self, processes: int) -> None:
        """Remove buckets that fill no batch of all processes. Their images move to the nearest bucket."""
        train, held = self._built()
        if not self.bucketed:
            return
        self._fit_batch(processes)
        found = Counter(train.shapes_of_visits())
        shapes = without_small(found.elements(), self.batch_size * processes)
        log.info("Aspect-ratio buckets, rows x columns: %s", ", ".join(f"{rows}x{columns}" for rows, columns in shapes))
        if few := sum(count for shape, count in found.items() if shape not in shapes):
            log.warning(
                "%d of %d visits are in buckets that do not fill a batch of %d (of all processes). Their images are "
                "cut to the nearest other bucket.",
                few,
                len(train),
                self.batch_size * processes,
            )
        for dataset in (train, held):
            dataset.settle(replace(dataset.framing, shapes=shapes))

    def state_dict(self) -> dict[str, Any]:
        """Return the data's part of a checkpoint: the settings of visits, and marks of the samples."""
        if self.train_dataset is None or self._sampler is None or self.trainer is None:
            return {}
        state = state_of(self, self._sampler, self.trainer, kept=self._samples)
        self._samples = state["samples"]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare the data of a checkpoint with these data before any work.

        Raises:
            ConfigurationError: with the settings that must not differ.
        """
        trainer: Any = self.trainer
        assert trainer is not None, "a trainer loads checkpoints"
        if trainer.state.fn != "fit":
            return
        sampler = self._new_sampler()
        found = compared(self, state, trainer)
        # This comes before Lightning reads these counters. Its hooks show a checkpoint to modules and callbacks only.
        loops = trainer._checkpoint_connector._loaded_checkpoint["loops"]["fit_loop"]
        go_on(found, sampler, trainer, batch_size=self.batch_size, loops=loops)
        self._begun = partial(_begun, sampler)

    def _place(self) -> tuple[int, int]:
        """Return the epoch, and the number of samples that this process has finished in it."""
        assert self.trainer is not None
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return self.trainer.current_epoch, batches * self.batch_size

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Return the loader of the held-out samples, each once."""
        _, held = self._built()
        return loader(held, batch_size=self.batch_size, num_workers=self.num_workers) if len(held) else []

    def unique_dataloader(
        self, dataset: CaptionedImages, rows: Sequence[int] | None = None, *, part: tuple[int, int] = (0, 1)
    ) -> DataLoader[Batch]:
        """Return a loader of each sample of `dataset` once, in fixed order, for a reference profile.

        Args:
            dataset: a dataset of this data module.
            rows: the rows of the wanted samples; by default all. The batches are the same as for all samples.
            part: the number of a part of these batches, and the number of parts. Parts take batches in turn.
        """
        each = 4 * self.batch_size
        if rows is None and part == (0, 1):
            return loader(dataset.unique(), batch_size=each, num_workers=self.num_workers)
        chosen = SomeSamples(dataset.unique(), each, rows=rows, part=part)
        return DataLoader(chosen, batch_size=None, num_workers=self.num_workers)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Empty the captions of a share of training visits, as a function of seed, epoch and keys."""
        trainer = self.trainer
        if not self.caption_dropout or trainer is None or not trainer.training:
            return batch
        name = f"{self.seed} {trainer.current_epoch} {batch['key']}"
        drop = uniform([seed_of_text(name)], len(batch["key"]))[0] < self.caption_dropout
        for field, empty in self._empty_caption.items():
            batch[field] = torch.where(drop.view(-1, *[1] * (empty.ndim - 1)), empty, batch[field])
        batch["caption"] = ["" if gone else text for gone, text in zip(drop.tolist(), batch["caption"], strict=True)]
        return batch


def _begun(earlier: VisitSampler, sampler: VisitSampler) -> None:
    """Continue a sampler as another one does."""
    if isinstance(sampler, BucketSampler):
        if isinstance(earlier, BucketSampler) and earlier.streams is not None:
            sampler.continue_from(earlier.streams)
    elif not isinstance(earlier, BucketSampler):
        sampler.rest = earlier.rest


def _require_validation_in_an_epoch(trainer: Trainer, *, batches: int) -> None:
    """Refuse what Lightning refuses: a validation interval longer than the batches of an epoch."""
    interval, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if isinstance(interval, int) and epochs is not None and batches < interval and trainer.limit_val_batches:
        raise ConfigurationError(
            f"trainer.val_check_interval={interval} with check_val_every_n_epoch={epochs}, and {batches} batch(es) per "
            "epoch",
            expected="at most the batches of an epoch, or check_val_every_n_epoch=null to count across epochs",
            remedy="add --trainer.val_check_interval 1.0 to validate at the end of an epoch",
        )
