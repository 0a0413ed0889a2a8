"""Data that are too large for the disk, as a stream: WebDataset shards from anywhere, or a Hugging Face data set.

What: images come in the order of the stream, shuffled within a buffer, and are cut to centre squares; each process and
loader worker has shards of its own. The class of `data` in a configuration:

    data:
      class_path: memtrain.data.streamed.StreamedImages
      init_args: {path: "https://host/shards/{0000..0999}.tar", resolution: 512, batches_per_epoch: 4000}

or `datasets:NAME?image=image&caption=text&key=id`, whose samples are named by a column, because the place of a row in a
shuffled stream is none. :mod:`memtrain.data.shard_urls` says what is opened and how (`pipe:` has to be trusted),
:mod:`memtrain.data.shard_reading` what a sample is, :mod:`memtrain.data.shard_feed` in which order they come.

Equal on all processes is the number of batches in an epoch: several processes need `batches_per_epoch`, and whoever is
through with its shards earlier begins them again. There have to be as many shards as processes times workers.
The monitor takes `reference: paired`, which measures nothing outside of training steps, and holds out by weight the
share of the names that its setting `heldout_share` says.
A run is resumed in the middle of an epoch: of shards, those are read again whose samples are still in the buffer; a
`datasets` stream is read from the beginning of the epoch. Nothing is decoded meanwhile. It is exact where the source
gives the same again; what `pipe:` gives is not known, which a warning says.
Cost: the buffer holds `shuffle_buffer` encoded images in each worker (1,000 of 100 kB are 100 MB). Cannot: go on in the
middle of an epoch on another number of processes or workers, or with another order, which deal the samples out
otherwise (it is refused); scan for families (copies are recognised while they come), hold pictures back from training,
cache, sort into buckets, or show an evaluation its training images; notice that a key is in two shards that do not
follow each other. Whatever fits on a disk is better read from there (:mod:`memtrain.data.webdataset`).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from memtrain.data.dataset import Batch
from memtrain.data.framing import require_multiple
from memtrain.data.huggingface import PREFIX, parsed
from memtrain.data.shard_feed import ShardFeed
from memtrain.data.shard_urls import (
    in_fixed_order,
    require_local_shards,
    require_openers,
    shard_name,
    shard_urls,
    shards_mark,
)
from memtrain.data.stream_broken import StreamBroken
from memtrain.data.stream_loader import Begin, Stream, StreamLoader
from memtrain.data.stream_place import Feed, Place
from memtrain.data.streamed_rows import RowFeed, streamed_rows
from memtrain.data.token_table import tokens_by
from memtrain.errors import ConfigurationError
from memtrain.files.resume_contract import check_settings, plain

log = logging.getLogger(__name__)


class StreamedImages(LightningDataModule):
    """Captioned images of a stream.

    Args:
        path: of WebDataset shards; or `datasets:` with the name of a data set and its columns, the `key` among them.
        resolution: image size, pixels.
        batch_size: samples per step and rank.
        num_workers: loader processes.
        shuffle_buffer: samples among which the next one is drawn; 0 leaves the order as it is.
        seed: of the order; default `seed_everything`'s.
        batches_per_epoch: of each process; default as many as there are, on one process.
        keys: of shards: `name` where base names are unique; `shard` puts the name of the shard before them.
        broken: what becomes of samples and shards that cannot be read: `stop` the run, or `skip` them.
        broken_share: of the samples that may be skipped.
        allow_pipes: run the commands of `pipe:` in a script of your own; on the command line it is `--trust pipe`.
    """

    def __init__(
        self,
        path: str,
        *,
        resolution: int = 512,
        batch_size: int = 16,
        num_workers: int = 0,
        shuffle_buffer: int = 1000,
        seed: int | None = None,
        batches_per_epoch: int | None = None,
        keys: Literal["name", "shard"] = "name",
        broken: Literal["stop", "skip"] = "stop",
        broken_share: float = 0.01,
        allow_pipes: bool = False,
    ) -> None:
        super().__init__()
        self.urls: list[str] = []
        self._dataset, self.options = "", {"key": ""}
        if path.startswith(PREFIX):
            self._dataset, self.options = parsed(path)
            if not self.options.get("key"):
                raise ConfigurationError(
                    f"{path!r} names no stream with a key",
                    expected="datasets:NAME?key=COLUMN, with a column of names that are the same in every epoch",
                    remedy="name the column, such as an id or URL; data without one are read with random access "
                    "(memtrain.data.module.TextImageDataModule)",
                )
        else:
            self.urls = shard_urls(path, allow_pipes=allow_pipes)
        require_multiple("resolution", resolution)
        if batches_per_epoch is not None and batches_per_epoch < 1:
            raise ConfigurationError(
                f"batches_per_epoch is {batches_per_epoch}", expected="at least 1", remedy="raise it, or leave it out"
            )
        self.path, self.resolution, self.batch_size = path, resolution, batch_size
        self.num_workers, self.shuffle_buffer = num_workers, shuffle_buffer
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.batches_per_epoch, self.keys = batches_per_epoch, keys
        self.broken, self.broken_share = broken, broken_share
        self._at = Begin()
        self._start: Begin | None = None
        self._loader: StreamLoader | None = None
        self._report: StreamBroken | None = None
        self._seen = 0

    @property
    def _shown(self) -> str:
        """The path in messages, without secrets."""
        return self.path if not self.urls else shard_name(self.urls[0]) + (" ..." if len(self.urls) > 1 else "")

    @property
    def _workers(self) -> int:
        return max(1, self.num_workers)

    # Checkpoints

    def _settings(self) -> dict[str, Any]:
        processes = 1 if self.trainer is None else self.trainer.world_size
        order: dict[str, Any] = {
            "processes": processes,
            "num_workers": self.num_workers,
            "shuffle_buffer": self.shuffle_buffer,
            "seed": self.seed,
        }
        if self.urls:
            order["shards"] = shards_mark(self.urls)
        if self.batches_per_epoch is not None:
            order["batches_per_epoch"] = self.batches_per_epoch
        workers = {"stream_batch_size": self.batch_size} if self.num_workers else {"batch_size": self.batch_size}
        return {"resolution": self.resolution, "stream_order": order, **workers}

    def state_dict(self) -> dict[str, Any]:
        """The place of every process in the stream, and what the order of its samples rests on."""
        if self.trainer is None:
            return {}
        over = self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        at = Begin(self._at.epoch + 1) if over else self._at
        places = [[[place.draws, list(place.counts), place.first] for place in at.places]]
        if self.trainer.world_size > 1:
            every: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(every, places[0])
            places = every
        where = {"epoch": at.epoch, "turn": at.turn, "batches": at.batches, "places": places}
        where["seen"] = 0 if self._report is None else self._report.seen
        return {"settings": plain(self._settings()), **where}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there, unless the rest of the epoch cannot be known.

        Raises:
            ConfigurationError: naming what may not differ.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        begun = state.get("batches", state.get("samples"))
        self._seen = state.get("seen", 0)
        if self._report is not None:
            self._report.seen = self._seen
        names = tuple(state["settings"]) if begun else ("resolution", "batch_size")
        saved = {name: value for name, value in state["settings"].items() if name in names}
        for note in check_settings(saved, self._settings()):
            log.warning("Continued with other settings: %s", note)
        if not begun:
            self._start = Begin(state["epoch"])
        elif "places" in state:
            places = state["places"][self.trainer.global_rank]
            at = tuple(Place(draws, tuple(counts), first) for draws, counts, first in places)
            self._start = Begin(state["epoch"], at, state["turn"], state["batches"])
        else:
            self._start = self._of_samples(state["epoch"], state["samples"])
        if begun and self.urls and not all(map(in_fixed_order, self.urls)):
            log.warning(
                "Continued in the middle of an epoch: exact only if the commands of pipe: write the same tars again"
            )

    def _of_samples(self, epoch: int, samples: int) -> Begin:
        """A place as earlier versions kept it: the samples of one process, whose workers took turns."""
        workers, batches = self._workers, samples // self.batch_size
        if workers == 1:
            return Begin(epoch, (Place(samples),), 0, batches)
        done = [(batches - worker + workers - 1) // workers for worker in range(workers)]
        return Begin(epoch, tuple(Place(self.batch_size * one) for one in done), batches % workers, batches)

    def _begin(self, epoch: int) -> Begin:
        """Where an iteration begins: in the first after a checkpoint, where that stopped."""
        start, self._start = self._start, None
        self._at = start or Begin(epoch)
        return self._at

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Note what is trained on; a batch that is fetched ahead is not."""
        if self.trainer is not None and self.trainer.training and self._loader is not None and self._loader.given:
            self._at = self._at.after(self._loader.given.popleft(), workers=self._workers)
        return batch

    # Batches

    def train_dataloader(self) -> DataLoader[Any]:
        """The share of this process, shuffled anew in each epoch."""
        trainer = self.trainer
        rank, processes = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        module = None if trainer is None else trainer.lightning_module
        tokenizer = getattr(module, "tokenizer", None)
        tokens = getattr(module, "tokens", None) or (None if tokenizer is None else tokens_by(tokenizer))
        stream = Stream(
            self._feed(rank, processes),
            batch_size=self.batch_size,
            resolution=self.resolution,
            tokens=tokens,
            skip=self.broken == "skip",
            rank=rank,
            processes=processes,
        )
        loader = StreamLoader(stream, num_workers=self.num_workers, batches=self.batches_per_epoch)
        if trainer is not None:
            loader.epoch = lambda: trainer.current_epoch
            loader.begin = self._begin
            folder = Path(trainer.default_root_dir)
            report = StreamBroken(folder, share=self.broken_share, path=self._shown, processes=processes)
            report.seen, self._report = self._seen, report
            loader.report = report
        self._loader = loader
        return loader

    def _feed(self, rank: int, processes: int) -> Feed:
        if processes > 1 and self.batches_per_epoch is None:
            raise ConfigurationError(
                f"{processes} processes read a stream, and nobody knows how many batches each of them has",
                expected="the same number of batches for each: a process with one less lets the others wait for ever",
                remedy="say batches_per_epoch: the number of samples, divided by batch_size and processes",
            )
        endless = self.batches_per_epoch is not None
        if not self.urls:
            buffer = self.shuffle_buffer
            rows, columns = streamed_rows(
                self._dataset, self.options, seed=self.seed, buffer=buffer, rank=rank, processes=processes
            )
            return RowFeed(rows, columns, path=self.path, endless=endless)
        if len(self.urls) < processes * self._workers:
            raise ConfigurationError(
                f"{len(self.urls)} shards for {processes} processes of {self._workers} worker(s)",
                expected="a shard for each worker of each process at least",
                remedy="take fewer workers (num_workers), or write more and smaller shards",
            )
        require_openers(self.urls)
        skip = self.broken == "skip"
        if not skip:
            require_local_shards(self.urls)
        buffer, keys = self.shuffle_buffer, self.keys
        return ShardFeed(self.urls, seed=self.seed, buffer=buffer, endless=endless, keys=keys, skip=skip)

    def val_dataloader(self) -> list[Any]:
        """Nothing: no picture of a stream is held back."""
        return []
