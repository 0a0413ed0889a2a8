"""The LightningDataModule: it opens any source, splits off held-out images, plants known truth and resumes exactly."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from memtrain.data.caching import keep_in_memory, keep_on_disk, keep_while_training, processes_of
from memtrain.data.canaries import Canaries
from memtrain.data.checking import leave_out, look_ahead
from memtrain.data.dataset import CaptionedImages
from memtrain.data.edited_copies import with_edited_copies
from memtrain.data.filled_images import FilledImages
from memtrain.data.framing import Augment, Framing, require_multiple
from memtrain.data.groups import groups_of
from memtrain.data.heldout_source import require_apart, split_sources
from memtrain.data.kept_looks import KeptLooks
from memtrain.data.known_families import AUTO, DataScan, find_families, with_made
from memtrain.data.planted import MadeSample, PlantedSource, make_canaries, make_templates, require_known
from memtrain.data.reading import Reading
from memtrain.data.regularisation import JoinedSource
from memtrain.data.repeats import repeats_of
from memtrain.data.sample_table import chosen, keys_of, without_collection
from memtrain.data.selection import Duplicates, choose_templates, plant, read_keys
from memtrain.data.source import SampleSource, open_source
from memtrain.data.token_table import Tokens
from memtrain.data.tokenizers import tell_of_cut_captions, tokens_of
from memtrain.families.scan_cache import cached_scan
from memtrain.families.table import Families
from memtrain.files.earlier_run import taken_over

log = logging.getLogger(__name__)


class TextImageDataModule(FilledImages):
    """Captioned images for fine-tuning.

    Args:
        path: the training data: a folder of images with captions, WebDataset shards, or a Hugging Face data set
            (docs/data.md).
        heldout_path: a second source for the held-out images. Without it, a part of `path` is held out.
        heldout_fraction: the share of the pictures of `path` that is held out. A hash of the key chooses them. A larger
            share than the default is taken as given. Unless the share is 0, at least 16 pictures are held out. This
            minimum, and not the share, is limited to a third of the pictures.
        heldout: the origin of held-out images when `heldout_path` is not set. `split` holds out a part of `path`.
            `edited` trains on all of `path` and uses edited copies as held-out images
            (:mod:`memtrain.data.edited_copies`). `regularisation` trains on all of `path` and holds out a part of the
            regularisation images. `auto` splits `path`. If the split would hold out fewer than 8 pictures, `auto` uses
            regularisation images (when it can hold out 8 of them) or edited copies instead.
        exclude: the keys that are left out of training, or a CSV file with a column `key`, such as the flagged.csv of
            an earlier run. Planted samples are chosen before this list applies, so no other sample is planted in the
            place of an excluded one.
        duplicates: repeated images and templates that are planted, so that an experiment knows the truth.
        canaries: synthetic images that are planted, so that the truth is known in any data.
        families: the groups of samples that show one picture or share a caption. `auto` scans the data for them. `off`
            counts every file as a picture of its own. Any other value is the path of a families.parquet that a scan
            of these data wrote.
        scan: the settings of the scan that `auto` makes.
        resolution: the image size in pixels, a multiple of 8.
        cache_latents: encode every image once with the module's autoencoder, and keep the latents in memory.
        visiting: the further options: `masks`, `border_keys`, `heldout_most` and `broken` of
            :class:`memtrain.data.masked_images.MaskedImages`, and the options of
            :class:`memtrain.data.visited_images.VisitedImages`, such as `batch_size`, `captions` and `repeats`.

    Attributes:
        visits_per_epoch: the number of visits of each training sample, by key.
        groups: the group of each sample, by key: `planted`, `unique`, `repeated`, `varied_captions`, `varied_images`,
            `canary`, `regularisation` or `heldout`.
        families: the families of all samples; None with `families: off`.
        copied_from: the key of the training sample that an edited copy is made from, by the key of the copy.
        template: the key of the sample that a variant is made from, by the key of the variant.
        run_folder: the run folder for use without a trainer; by default the trainer's folder.
    """

    def __init__(
        self,
        path: str,
        *,
        heldout_path: str | None = None,
        heldout_fraction: float = 0.1,
        heldout: Literal["auto", "split", "edited", "regularisation"] = "auto",
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
        require_multiple("resolution", resolution)
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
        """Read the sources, split off held-out samples, plant samples, and check every image.

        This method needs no trainer, so an evaluation finds the same samples again.

        Args:
            tokens: the function that makes `input_ids` and similar fields from captions; None leaves these fields out.

        Raises:
            DataError: if the data cannot be used.
            ConfigurationError: if settings contradict each other.
        """
        source = self._open(self.path)
        keys = keys_of(source.samples)
        families, scanned = find_families(self.families_setting, source, self.scan, folder=self._families_folder())
        regular = None if self.regularisation is None else self.regularisation.open()
        split, regular_split, edited = split_sources(self, keys, regular, families=families)
        train, held = split.train, split.heldout
        if split.aside:
            log.info("%d further files of held-out pictures are left out of training", len(split.aside))
        planted = self.duplicates
        if not planted.meant_for(self.path):
            log.warning("The example's duplicates are for %s. None is planted in %s.", planted.only_in, self.path)
            planted = Duplicates()
        plan = plant(train, keys, planted)
        templates = choose_templates(train, keys, planted)
        made = make_templates(source.samples, templates, planted)
        made += make_canaries(self.canaries) if self.canaries else []
        made_keys = {one.sample.key for one in made}
        require_known(self.exclude, {*keys, *(one.key for one in source.broken)}, made_keys, path=self.path)
        held_source = source
        if self.heldout_path:
            held_source = self._open(self.heldout_path)
            held = list(range(len(held_source)))
            require_apart(held_source, {*keys, *made_keys}, path=self.path)
        made = [one for one in made if not self._excluded(one, keys)]
        repeats = repeats_of(keys, self.repeats)
        visits = {index: count * repeats[index] for index, count in plan.items() if keys[index] not in self.exclude}
        repeated = {keys[index] for index, count in plan.items() if count > 1}
        visits |= {len(keys) + number: one.visits for number, one in enumerate(made)}
        shown = {held_source.samples[row].key for row in held}
        gone = self._broken_keys([source, held_source, *([] if regular is None else [regular])], scanned, shown)
        if gone:
            named = [*keys, *(one.sample.key if one.original is None else keys[one.original] for one in made)]
            visits = {row: count for row, count in visits.items() if named[row] not in gone}
            held = [row for row in held if held_source.samples[row].key not in gone]
            if regular is not None:
                regular_split = regular_split.without([sample.key in gone for sample in regular.samples])
        if edited:
            trained = [index for index in visits if index < len(keys)]
            held_source, held, self.copied_from = with_edited_copies(source, trained, families=families)
        elif regular is not None and regular_split.heldout and not self.heldout_path:
            held_source, held = regular, regular_split.heldout
        everything = self._bordered(PlantedSource(source, made) if made else source, self.resolution)
        held_source = self._bordered(held_source, self.resolution)
        self._trained(everything, visits, regular, regular_split.train, tokens=tokens)
        fixed = replace(self._framing(), augment=Augment())  # the one view in which held-out images are seen
        self.heldout_dataset = CaptionedImages(
            held_source, held, resolution=self.resolution, tokens=tokens, framing=fixed
        )
        for dataset in self._built():
            dataset.skips = self.broken.skips
        self.families = None if families is None else with_made(families, made, keys)
        self.groups = groups_of(
            keys_of(chosen(everything.samples, list(visits))),
            repeated=repeated,
            made=made,
            families=self.families,
            visited=self.visits_per_epoch,
            heldout=keys_of(self.heldout_dataset.samples),
        )
        self.template = {one.sample.key: keys[one.original] for one in made if one.original is not None}
        self._empty_caption = {} if tokens is None else tokens([""])

    def _open(self, path: str) -> SampleSource:
        """Open the source of training or held-out images, and put the trigger words into its captions."""
        reading = Reading(skip=True, stops=not self.broken.skips, kept_in=self._kept_in("listings"))
        source = open_source(path, caption=self.captions.default or self.captions.trigger, reading=reading)
        if self.captions.trigger:
            source.samples = [self.captions.triggered(sample) for sample in source.samples]
        if not len(source.samples):
            self._broken_keys([source], None)
        return source

    def _trained(
        self,
        source: SampleSource,
        visits: dict[int, int],
        regular: SampleSource | None,
        rows: list[int],
        *,
        tokens: Tokens | None,
    ) -> None:
        """Make the training dataset from the visits of a source and the regularisation images."""
        indices, counts, weights = list(visits), list(visits.values()), None
        self.visits_per_epoch = dict(zip(keys_of(chosen(source.samples, indices)), counts, strict=True))
        regular_keys = [] if regular is None else [regular.samples[row].key for row in rows]
        if regular is not None and self.regularisation is not None and regular_keys:
            added = self.regularisation.visits(regular_keys, sum(counts))
            weights = [1.0] * len(indices) + [self.regularisation.weight] * len(rows)
            indices += [len(source) + row for row in rows]
            counts += added
            self.visits_per_epoch |= {key: max(1, round(sum(added) / len(added))) for key in regular_keys}
            source = JoinedSource(source, self._bordered(regular, self.resolution))
        self.train_dataset = CaptionedImages(
            source,
            indices,
            resolution=self.resolution,
            tokens=tokens,
            visits=counts,
            framing=self._framing(),
            captions=self.captions,
            weights=weights,
            rotating=range(len(visits), len(indices)),
            kept_in=self._kept_in("tokens"),
        )

    def _broken_keys(
        self, sources: list[SampleSource], scanned: Collection[str] | None, held: Collection[str] = ()
    ) -> set[str]:
        """Return the keys of unusable samples (:func:`memtrain.data.checking.leave_out`); `held` are held-out keys."""
        self.broken.folder, self.broken.goes_on = self._root(), getattr(self.trainer, "ckpt_path", None) is not None
        for one in reversed(sources):
            one.kept_looks = self._looks_of(one, scanned=one is sources[0])
        self._looked_at = sources
        return leave_out(
            self.broken,
            sources,
            scanned=scanned,
            look=self._looks_first,
            remember=self.fills,
            every=self.cache_latents,
            without=self.exclude.difference(held),
            trainer=self.trainer,
        )

    def _looks_of(self, source: SampleSource, *, scanned: bool = False) -> KeptLooks:
        """Return what is kept of the images of a source, by this run or by the scan for families."""
        families = self._families_folder() if scanned and self.families_setting == AUTO else None
        return KeptLooks(source, self._kept_in("looks"), scanned=families, settings=self.scan)

    @property
    def _looks_first(self) -> bool:
        """Whether training needs the size and content of every image before it starts."""
        return self._framing().sized or (self.cache is not None and not self.fills)

    def _framing(self) -> Framing:
        return Framing.of(self.resolution, buckets=self.buckets, augment=self.augment, seed=self.seed)

    def prepare_data(self) -> None:
        """Scan for families on one process before the other processes read the result."""
        folder, source = self._families_folder(), None
        if self.families_setting == AUTO and self.families is None and folder is not None:
            taken_over(getattr(self.trainer, "ckpt_path", None), "families", into=folder)
            source = self._open(self.path)
            cached_scan(source, self.scan, folder)
        if self._looks_first and self.train_dataset is None and self._kept_in("looks") is not None:
            source = source or self._open(self.path)
            look_ahead(source, self._looks_of(source, scanned=True), without=self.exclude)

    def _families_folder(self) -> Path | None:
        root = self._root()
        return Path(self.scan.folder) if self.scan.folder else root and root / "families"

    def _excluded(self, one: MadeSample, keys: list[str]) -> bool:
        return one.sample.key in self.exclude or (one.original is not None and keys[one.original] in self.exclude)

    def alternatives(self) -> dict[str, tuple[str, ...]]:
        """The other captions of each training sample, by key; empty for a sample with one caption."""
        return {sample.key: sample.alternatives for sample in self._built()[0].samples}

    def setup(self, stage: str) -> None:
        """Build once, then cache what the module's encoders make of images and captions where asked."""
        if self.train_dataset is not None:
            return
        module = self.trainer.lightning_module if self.trainer is not None else None
        with without_collection():
            self.build(tokens_of(module, self.tokenizer_path))
        tell_of_cut_captions(self._built()[0], module, self.tokenizer_path)
        processes, device = processes_of(self.trainer)
        self._settle_shapes(processes.count)
        self._use_masks(module, device)
        if self.cache is not None:
            given: dict[str, Any] = {"empty": self._empty_caption, "processes": processes, "device": device}
            if self.fills:
                filling, empty = keep_while_training(self.cache, self._built(), module, **given)
                self._fill(filling, rank=processes.rank)
            else:
                empty = keep_on_disk(self.cache, self._built(), module, **given)
            self._empty_caption |= empty
        if self.cache_latents and not (self.cache is not None and self.cache.latents):
            keep_in_memory(self._built(), module, device)
