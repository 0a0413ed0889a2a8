"""Data that are too large for the disk, as a stream: WebDataset shards from anywhere, or a Hugging Face data set.

Images come in the order of the stream, shuffled within a buffer, and are cut to center squares. Each process and
loader worker has shards of its own. The class of `data` in a configuration:

    data:
      class_path: memtrain.data.streamed.StreamedImages
      init_args: {path: "https://host/shards/{0000..0999}.tar", resolution: 512, batches_per_epoch: 4000}

The path may also be `datasets:NAME?image=image&caption=text&key=id`. The option `key` names a column with the names of
samples, because the row number in a shuffled stream names nothing. :mod:`memtrain.data.shard_urls` describes which
addresses are opened and how (`pipe:` must be trusted). :mod:`memtrain.data.shard_reading` describes a sample, and
:mod:`memtrain.data.shard_feed` describes the order of samples.

All processes need the same number of batches in an epoch, so several processes need `batches_per_epoch`. A process that
finishes its shards earlier begins them again. There must be at least as many shards as processes times workers.
The monitor takes `reference: paired`, which measures nothing outside of training steps. It holds out samples by weight;
its setting `heldout_share` is their share.
A run resumes in the middle of an epoch. It reads those shards again whose samples are still in the buffer. A `datasets`
stream is read again from the beginning of the epoch, without decoding. Resuming is exact if the source gives the same
data again. This is not known for `pipe:`, and a warning says so.
Cost: each worker's buffer holds `shuffle_buffer` encoded images (1,000 images of 100 kB are 100 MB).
Cannot: resume in the middle of an epoch with another number of processes or workers or another order. This is refused,
because the samples would be dealt out differently. A stream cannot be scanned for families either (copies are
recognized as they come). It cannot hold pictures back from training, cache, sort into buckets, or show an evaluation
its training images. It does not notice a key in two shards that do not follow each other. Data that fit on a disk are
better read from there (:mod:`memtrain.data.webdataset`).
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
        path: the path of WebDataset shards, or `datasets:` with the name of a data set and its columns, including
            `key`.
        resolution: the image size in pixels.
        batch_size: the number of samples per step and process.
        num_workers: the number of loader processes.
        shuffle_buffer: the number of samples from which the next one is drawn; 0 keeps the order.
        seed: the seed of the order; by default the seed of `seed_everything`.
        batches_per_epoch: the number of batches of each process in an epoch; by default all batches, on one process.
        keys: the keys of samples in shards. `name` uses base names, which must be unique. `shard` puts the name of the
            shard before them.
        broken: the treatment of samples and shards that cannot be read: `stop` ends the run, `skip` leaves them out.
        broken_share: the largest share of samples that may be skipped.
        allow_pipes: whether to run the commands of `pipe:`, in a script of your own; on the command line, use
            `--trust pipe`.
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
                    f"{path!r} names no column of keys",
                    expected="datasets:NAME?key=COLUMN, with a column of names that are the same in every epoch",
                    remedy="name the column, such as an id or a URL; read data without one with random access "
                    "(memtrain.data.module.TextImageDataModule)",
                )
        else:
            self.urls = shard_urls(path, allow_pipes=allow_pipes)
        require_multiple("resolution", resolution)
        if batches_per_epoch is not None and batches_per_epoch < 1:
            raise ConfigurationError(
                f"batches_per_epoch is {batches_per_epoch}",
                expected="at least 1",
                remedy="raise data.init_args.batches_per_epoch, or remove it",
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
        """The path without secrets, for messages."""
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
        """Return the place of every process in the stream, and the settings that determine the order of samples."""
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
        """Go on at the saved place, unless the rest of the epoch cannot be known.

        Raises:
            ConfigurationError: with the settings that must not differ.
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
                "Continued in the middle of an epoch. This is exact only if the commands of pipe: write the same tars "
                "again."
            )

    def _of_samples(self, epoch: int, samples: int) -> Begin:
        """Convert a place in the form of earlier versions: the samples of one process, whose workers took turns."""
        workers, batches = self._workers, samples // self.batch_size
        if workers == 1:
            return Begin(epoch, (Place(samples),), 0, batches)
        done = [(batches - worker + workers - 1) // workers for worker in range(workers)]
        return Begin(epoch, tuple(Place(self.batch_size * one) for one in done), batches % workers, batches)

    def _begin(self, epoch: int) -> Begin:
        """Return the place where an iteration begins: after a checkpoint, the place that it holds."""
        start, self._start = self._start, None
        self._at = start or Begin(epoch)
        return self._at

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Note the place of the batch that is trained on; batches that are fetched ahead do not count."""
        if self.trainer is not None and self.trainer.training and self._loader is not None and self._loader.given:
            self._at = self._at.after(self._loader.given.popleft(), workers=self._workers)
        return batch

    # Batches

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of this process's share, in a new order in each epoch."""
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
                f"{processes} processes read a stream, and the number of batches of each process is not known",
                expected="the same number of batches for each process: with one batch less, the others wait forever",
                remedy="set --data.init_args.batches_per_epoch to the number of samples divided by batch_size and "
                "processes",
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
                expected="at least one shard for each worker of each process",
                remedy="lower --data.init_args.num_workers, or write more and smaller shards",
            )
        require_openers(self.urls)
        skip = self.broken == "skip"
        if not skip:
            require_local_shards(self.urls)
        buffer, keys = self.shuffle_buffer, self.keys
        return ShardFeed(self.urls, seed=self.seed, buffer=buffer, endless=endless, keys=keys, skip=skip)

    def val_dataloader(self) -> list[Any]:
        """Return nothing: no picture of a stream is held back."""
        return []
