"""How the samples of a data module are visited: batches, order, resuming, dropped captions."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from memtrain.data.dataset import Batch, CaptionedImages, loader
from memtrain.data.sampler import ResumableDistributedSampler, ResumableLoader, fitting_batch
from memtrain.errors import ConfigurationError
from memtrain.functional.keyed_draws import seed_of_text, uniform


class VisitedImages(LightningDataModule):
    """How samples are visited: in batches, in an order that resumes exactly, some without their caption.

    A data module of this kind sets `train_dataset` and `heldout_dataset`.

    Args:
        batch_size: samples per step and rank.
        num_workers: loader processes; 0 is fastest with cached latents.
        caption_dropout: share of visits whose caption is replaced by the empty one, for classifier-free guidance.
        seed: of the order of visits and of caption dropout; default `seed_everything`'s.
        tokenizer: folder of the tokenizer; by default the module's own is used.

    Raises:
        ConfigurationError: if there is no such batch or share.
    """

    def __init__(
        self,
        *,
        batch_size: int = 16,
        num_workers: int = 0,
        caption_dropout: float = 0.0,
        seed: int | None = None,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= caption_dropout < 1:
            raise ConfigurationError(
                f"caption_dropout={caption_dropout}", expected="a share from 0 to below 1", remedy="change it"
            )
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}", expected="at least 1", remedy="change it")
        self.batch_size, self.num_workers, self.caption_dropout = batch_size, num_workers, caption_dropout
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.tokenizer_path = tokenizer
        self.train_dataset: CaptionedImages | None = None
        self.heldout_dataset: CaptionedImages | None = None
        self._empty_caption: dict[str, Tensor] = {}

    def _built(self) -> tuple[CaptionedImages, CaptionedImages]:
        if self.train_dataset is None or self.heldout_dataset is None:
            raise ConfigurationError("The data module was not set up", remedy="call setup() or build() first")
        return self.train_dataset, self.heldout_dataset

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled visits of this rank, continued where a checkpoint left off."""
        train, _ = self._built()
        trainer = self.trainer
        sampler = ResumableDistributedSampler(
            train,
            num_replicas=trainer.world_size if trainer is not None else 1,
            rank=trainer.global_rank if trainer is not None else 0,
            seed=self.seed,
            place=self._place if trainer is not None else None,
        )
        self.batch_size = fitting_batch(self.batch_size, len(sampler))
        if trainer is not None:
            _require_validation_in_an_epoch(trainer, batches=len(sampler) // self.batch_size)
        return ResumableLoader(
            train,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=True,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _place(self) -> tuple[int, int]:
        """The epoch, and the samples of this rank that are done in it."""
        assert self.trainer is not None
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return self.trainer.current_epoch, batches * self.batch_size

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """The held-out samples, each once."""
        _, held = self._built()
        return loader(held, batch_size=self.batch_size, num_workers=self.num_workers) if len(held) else []

    def unique_dataloader(self, dataset: CaptionedImages) -> DataLoader[Batch]:
        """Each sample of `dataset` once, in fixed order, for a reference profile."""
        return loader(dataset.unique(), batch_size=4 * self.batch_size, num_workers=self.num_workers)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Replace captions by the empty one for a share of training visits, as a function of seed, epoch and keys."""
        trainer = self.trainer
        if not self.caption_dropout or trainer is None or not trainer.training:
            return batch
        name = f"{self.seed} {trainer.current_epoch} {batch['key']}"
        drop = uniform([seed_of_text(name)], len(batch["key"]))[0] < self.caption_dropout
        for field, empty in self._empty_caption.items():
            batch[field] = torch.where(drop.view(-1, *[1] * (empty.ndim - 1)), empty, batch[field])
        batch["caption"] = ["" if gone else text for gone, text in zip(drop.tolist(), batch["caption"], strict=True)]
        return batch


def _require_validation_in_an_epoch(trainer: Trainer, *, batches: int) -> None:
    """Refuse what Lightning refuses: validation every so many batches of an epoch, which has fewer."""
    interval, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if isinstance(interval, int) and epochs is not None and batches < interval and trainer.limit_val_batches:
        raise ConfigurationError(
            f"trainer.val_check_interval={interval} with check_val_every_n_epoch={epochs}, and {batches} batch(es) per "
            "epoch",
            expected="a number of batches that an epoch has, or check_val_every_n_epoch=null to count across epochs",
            remedy="add --trainer.val_check_interval 1.0 to validate at the end of an epoch",
        )
