"""The LightningDataModule: any source, a fixed held-out split, planted truth, cached latents, exact resume."""

from __future__ import annotations

import logging
import os
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from memtrain.data.canaries import Canaries
from memtrain.data.dataset import Batch, CaptionedImages, loader
from memtrain.data.edited_copies import wants_copies, with_edited_copies
from memtrain.data.heldout_split import split_heldout
from memtrain.data.known_families import OFF, read_families, repeated_pictures, with_made
from memtrain.data.planted import MadeSample, PlantedSource, make_canaries, make_templates, require_known
from memtrain.data.sampler import ResumableDistributedSampler, ResumableLoader, fitting_batch
from memtrain.data.selection import (
    Duplicates,
    choose_templates,
    plant,
    read_keys,
)
from memtrain.data.source import open_source
from memtrain.errors import ConfigurationError, DataError
from memtrain.families.table import Families
from memtrain.functional.keyed_draws import seed_of_text, uniform
from memtrain.functional.tokens import Tokenizer, tokenize
from memtrain.records import HELDOUT, PLANTED, UNIQUE

log = logging.getLogger(__name__)


class VisitedImages(LightningDataModule):
    """How samples are visited: in batches, in an order that resumes exactly, some without their caption.

    A data module of this kind sets `train_dataset` and `heldout_dataset`.

    Args:
        batch_size: samples per step and rank.
        num_workers: loader processes; 0 is fastest with cached latents.
        caption_dropout: share of visits whose caption is replaced by the empty one, for classifier-free guidance.
        seed: of the order of visits and of caption dropout; default `seed_everything`'s.

    Raises:
        ConfigurationError: if there is no such batch or share.
    """

    def __init__(
        self, *, batch_size: int = 16, num_workers: int = 0, caption_dropout: float = 0.0, seed: int | None = None
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
        self.train_dataset: CaptionedImages | None = None
        self.heldout_dataset: CaptionedImages | None = None
        self._empty_caption: tuple[Tensor, Tensor] | None = None

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
        if self._empty_caption is not None:
            ids, length = self._empty_caption
            batch["input_ids"] = torch.where(drop[:, None], ids, batch["input_ids"])
            batch["prompt_length"] = torch.where(drop, length, batch["prompt_length"])
        batch["caption"] = ["" if gone else text for gone, text in zip(drop.tolist(), batch["caption"], strict=True)]
        return batch


class TextImageDataModule(VisitedImages):
    """Captioned images for fine-tuning.

    Args:
        path: a folder with `metadata.jsonl`, or WebDataset shards (see :mod:`memtrain.data.webdataset`).
        heldout_path: take held-out samples from this source instead of splitting `path`.
        heldout_fraction: share of the pictures of `path` that is held out, chosen by a hash of the key. Unless it is 0,
            at least 16 pictures are, but no more than a third.
        heldout: where held-out samples come from without a `heldout_path`. `split`: from `path`; `edited`: all of
            `path` is trained on, and edited copies stand in (:mod:`memtrain.data.edited_copies`); `auto`: a split,
            unless fewer than 8 pictures could be held out.
        exclude: keys that are left out of training, or a CSV file with them in a column `key`, such as an earlier run's
            flagged.csv. What is planted is chosen before, so that nothing else is planted in the place of what is
            excluded.
        duplicates: plant repeated images and templates, to have a known truth in experiments.
        canaries: plant synthetic images, to have a known truth in any data.
        families: which samples are one picture, and which share a caption: `off` counts every file as a picture of its
            own; else the families.parquet of a scan of these data.
        resolution: image size, pixels.
        cache_latents: encode every image once with the module's autoencoder and keep the latents in memory.
        tokenizer: folder of the tokenizer; by default the module's own is used.
        visiting: `batch_size`, `num_workers`, `caption_dropout` and `seed`, as of :class:`VisitedImages`.

    Attributes:
        visits_per_epoch: of each training sample, by key.
        groups: `planted`, `unique`, `repeated`, `varied_captions`, `varied_images`, `canary` or `heldout`, by key.
        families: of all samples; None with `families: off`.
        copied_from: the key of the training sample that a held-out one is an edited copy of, by the copy's key.
        template: the key of the sample that a variant is made from, by the variant's key.
    """

    def __init__(
        self,
        path: str,
        *,
        heldout_path: str | None = None,
        heldout_fraction: float = 0.1,
        heldout: Literal["auto", "split", "edited"] = "auto",
        exclude: list[str] | str | None = None,
        duplicates: Duplicates | None = None,
        canaries: Canaries | None = None,
        families: str = OFF,
        resolution: int = 512,
        cache_latents: bool = False,
        tokenizer: str | None = None,
        **visiting: Any,
    ) -> None:
        super().__init__(**visiting)
        if resolution < 1:
            raise ConfigurationError(f"resolution={resolution}", expected="at least 1", remedy="change it")
        self.path, self.heldout_path, self.heldout_fraction = path, heldout_path, heldout_fraction
        self.heldout_setting = heldout
        self.copied_from: dict[str, str] = {}
        self.exclude = read_keys(exclude) if isinstance(exclude, str) else frozenset(exclude or ())
        self.duplicates, self.canaries = duplicates or Duplicates(), canaries
        self.resolution, self.cache_latents, self.tokenizer_path = resolution, cache_latents, tokenizer
        self.families_setting = families
        self.families: Families | None = None
        self.visits_per_epoch: dict[str, int] = {}
        self.groups: dict[str, str] = {}
        self.template: dict[str, str] = {}

    def build(self, tokenizer: Tokenizer | None = None) -> None:
        """Read the sources, split, plant, and check every image.

        Needs no trainer, so that evaluation finds the same samples again.

        Args:
            tokenizer: for `input_ids`; None leaves tokens out.

        Raises:
            DataError: if the data cannot be used.
            ConfigurationError: if settings contradict each other.
        """
        source = open_source(self.path)
        keys = [sample.key for sample in source.samples]
        families = None if self.families_setting == OFF else read_families(self.families_setting, keys)
        split = split_heldout(keys, 0.0 if self.heldout_path else self.heldout_fraction, families=families)
        edited = not self.heldout_path and wants_copies(
            self.heldout_setting, keys, families=families, fraction=self.heldout_fraction, held=len(split.heldout)
        )
        if edited:
            split = split_heldout(keys, 0.0)
        train, held = split.train, split.heldout
        if split.aside:
            log.info("%d further files of held-out pictures are left out of training", len(split.aside))
        planted = self.duplicates
        if planted.only_in not in (None, self.path):
            log.warning("No duplicates are planted in %s: `duplicates.only_in` is %s", self.path, planted.only_in)
            planted = Duplicates()
        plan = plant(train, keys, planted)
        templates = choose_templates(train, keys, planted)
        made = make_templates(source.samples, templates, planted)
        made += make_canaries(self.canaries) if self.canaries else []
        made_keys = {one.sample.key for one in made}
        names = set(keys)
        require_known(self.exclude, names, made_keys, path=self.path)
        held_source = source
        if self.heldout_path:
            held_source = open_source(self.heldout_path)
            held = list(range(len(held_source)))
            shared = {sample.key for sample in held_source.samples} & (set(keys) | made_keys)
            if shared:
                raise DataError(
                    f"{len(shared)} key(s) are both in {self.path} and in {self.heldout_path}",
                    expected="held-out samples that are not trained on",
                    remedy="remove or rename them",
                )
        made = [one for one in made if not self._excluded(one, keys)]
        visits = {index: count for index, count in plan.items() if keys[index] not in self.exclude}
        visits |= {len(keys) + number: one.visits for number, one in enumerate(made)}
        source.check_images()
        if held_source is not source:
            held_source.check_images()
        if edited:
            trained = [index for index in visits if index < len(keys)]
            held_source, held, self.copied_from = with_edited_copies(source, trained, families=families)
        everything = PlantedSource(source, made) if made else source
        self.train_dataset = CaptionedImages(
            everything, list(visits), resolution=self.resolution, tokenizer=tokenizer, visits=list(visits.values())
        )
        self.heldout_dataset = CaptionedImages(held_source, held, resolution=self.resolution, tokenizer=tokenizer)
        self.visits_per_epoch = {everything.samples[index].key: count for index, count in visits.items()}
        self.groups = {key: PLANTED if count > 1 else UNIQUE for key, count in self.visits_per_epoch.items()}
        self.groups |= {one.sample.key: one.group for one in made}
        self.families = None if families is None else with_made(families, made, keys)
        if self.families is not None:
            self.groups |= repeated_pictures(self.groups, self.families)
        self.groups |= {sample.key: HELDOUT for sample in self.heldout_dataset.samples}
        self.template = {one.sample.key: keys[one.original] for one in made if one.original is not None}
        self._empty_caption = None
        if tokenizer is not None:
            input_ids, mask = tokenize(tokenizer, [""])
            self._empty_caption = input_ids, mask.sum(dim=1)

    def _excluded(self, one: MadeSample, keys: list[str]) -> bool:
        return one.sample.key in self.exclude or (one.original is not None and keys[one.original] in self.exclude)

    def alternatives(self) -> dict[str, tuple[str, ...]]:
        """The other captions of each training sample, by key; empty for a sample with one caption."""
        return {sample.key: sample.alternatives for sample in self._built()[0].samples}

    def setup(self, stage: str) -> None:
        """Build once, then cache latents with the module's autoencoder where asked."""
        if self.train_dataset is not None:
            return
        module = self.trainer.lightning_module if self.trainer is not None else None
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_path) if self.tokenizer_path else None
        self.build(tokenizer or getattr(module, "tokenizer", None))
        if self.cache_latents:
            encode = getattr(module, "encode_images", None)
            if encode is None:
                raise ConfigurationError(
                    f"cache_latents is on, but {type(module).__name__} has no encode_images(pixel_values)",
                    expected="a module that encodes images, such as TextToImageModule",
                    remedy="set data.init_args.cache_latents to false",
                )
            strategy: Any = self.trainer.strategy  # type: ignore[union-attr]
            for dataset in self._built():
                dataset.cache_latents(lambda pixels: encode(pixels.to(strategy.root_device)))


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
