"""The LightningDataModule: any source, a fixed held-out split, planted truth, cached latents, exact resume."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer

from memtrain.data.canaries import Canaries
from memtrain.data.dataset import CaptionedImages, Tokens, tokens_by
from memtrain.data.edited_copies import wants_copies, with_edited_copies
from memtrain.data.heldout_split import split_heldout
from memtrain.data.known_families import AUTO, DataScan, find_families, repeated_pictures, with_made
from memtrain.data.planted import MadeSample, PlantedSource, make_canaries, make_templates, require_known
from memtrain.data.selection import (
    Duplicates,
    choose_templates,
    plant,
    read_keys,
)
from memtrain.data.source import open_source
from memtrain.data.visited_images import VisitedImages
from memtrain.errors import ConfigurationError, DataError
from memtrain.families.scan_cache import cached_scan
from memtrain.families.table import Families
from memtrain.records import HELDOUT, PLANTED, UNIQUE

log = logging.getLogger(__name__)


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
        families: which samples are one picture, and which share a caption: `auto` scans the data for it, `off` counts
            every file as a picture of its own; else the families.parquet of a scan of these data.
        scan: how `auto` looks for them.
        resolution: image size, pixels.
        cache_latents: encode every image once with the module's autoencoder and keep the latents in memory.
        visiting: `batch_size`, `num_workers`, `caption_dropout`, `seed` and `tokenizer`, as of :class:`VisitedImages`.

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
        families: str = AUTO,
        scan: DataScan | None = None,
        resolution: int = 512,
        cache_latents: bool = False,
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
        self.resolution, self.cache_latents = resolution, cache_latents
        self.families_setting, self.scan = families, scan or DataScan()
        self.families: Families | None = None
        self.visits_per_epoch: dict[str, int] = {}
        self.groups: dict[str, str] = {}
        self.template: dict[str, str] = {}

    def build(self, tokens: Tokens | None = None) -> None:
        """Read the sources, split, plant, and check every image.

        Needs no trainer, so that evaluation finds the same samples again.

        Args:
            tokens: makes `input_ids` and the like of captions; None leaves them out.

        Raises:
            DataError: if the data cannot be used.
            ConfigurationError: if settings contradict each other.
        """
        source = open_source(self.path)
        keys = [sample.key for sample in source.samples]
        families = find_families(self.families_setting, source, self.scan, folder=self._families_folder())
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
            log.warning("The example's duplicates are for %s; none is planted in %s", planted.only_in, self.path)
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
            everything, list(visits), resolution=self.resolution, tokens=tokens, visits=list(visits.values())
        )
        self.heldout_dataset = CaptionedImages(held_source, held, resolution=self.resolution, tokens=tokens)
        self.visits_per_epoch = {everything.samples[index].key: count for index, count in visits.items()}
        self.groups = {key: PLANTED if count > 1 else UNIQUE for key, count in self.visits_per_epoch.items()}
        self.groups |= {one.sample.key: one.group for one in made}
        self.families = None if families is None else with_made(families, made, keys)
        if self.families is not None:
            self.groups |= repeated_pictures(self.groups, self.families)
        self.groups |= {sample.key: HELDOUT for sample in self.heldout_dataset.samples}
        self.template = {one.sample.key: keys[one.original] for one in made if one.original is not None}
        self._empty_caption = {} if tokens is None else tokens([""])

    def prepare_data(self) -> None:
        """Scan for families on one process, before the others read what it found; says what that cost."""
        folder = self._families_folder()
        if self.families_setting == AUTO and self.families is None and folder is not None:
            cached_scan(open_source(self.path), self.scan, folder)

    def _families_folder(self) -> Path | None:
        root = getattr(self.trainer, "default_root_dir", None)
        return Path(self.scan.folder) if self.scan.folder else Path(root) / "families" if root else None

    def _excluded(self, one: MadeSample, keys: list[str]) -> bool:
        return one.sample.key in self.exclude or (one.original is not None and keys[one.original] in self.exclude)

    def alternatives(self) -> dict[str, tuple[str, ...]]:
        """The other captions of each training sample, by key; empty for a sample with one caption."""
        return {sample.key: sample.alternatives for sample in self._built()[0].samples}

    def _tokens(self, module: Any) -> Tokens | None:
        """How captions become tokens: by the tokenizer that was named, else by the module, else by its tokenizer."""
        if self.tokenizer_path:
            return tokens_by(AutoTokenizer.from_pretrained(self.tokenizer_path))
        if hasattr(module, "tokens"):
            return module.tokens
        tokenizer = getattr(module, "tokenizer", None)
        return None if tokenizer is None else tokens_by(tokenizer)

    def setup(self, stage: str) -> None:
        """Build once, then cache latents with the module's autoencoder where asked."""
        if self.train_dataset is not None:
            return
        module = self.trainer.lightning_module if self.trainer is not None else None
        self.build(self._tokens(module))
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
