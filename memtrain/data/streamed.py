"""A Hugging Face data set as a stream: for data that are too large for the disk.

What: images come in the order of the stream, shuffled within a buffer, and are cut to centre squares; each process and
loader worker has shards of its own. Samples are named by a column, because the place of a row in a shuffled stream is
none. The class of `data` in a configuration:

    data:
      class_path: memtrain.data.streamed.StreamedImages
      init_args: {path: "datasets:NAME?image=image&caption=text&key=id", resolution: 512}

The monitor takes `reference: paired`, which measures nothing outside of training steps, and holds out by weight the
share of the names that its setting `heldout_share` says.
A run is resumed in the middle of an epoch by reading the stream from the beginning of the epoch up to there: images are
not decoded meanwhile without loader workers, and are with them.
Cost: none beside the stream. Cannot: go on in the middle of an epoch on another number of processes or workers, or with
another order, which deal the rows out otherwise (it is refused); scan for families (copies are recognised while they
come), hold pictures back from training, cache, sort into buckets, or show an evaluation its training images. Whatever
fits on a disk is better read from there (:mod:`memtrain.data.huggingface`).
"""

from __future__ import annotations

import importlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from memtrain.data.dataset import Batch, Tokens, tokens_by
from memtrain.data.framing import require_multiple
from memtrain.data.huggingface import PREFIX, imported, parsed
from memtrain.data.images import to_pixel_values
from memtrain.data.source import Sample, SampleSource
from memtrain.errors import ConfigurationError, DataError
from memtrain.files.pictures import opened_image
from memtrain.files.resume_contract import check_settings, plain

log = logging.getLogger(__name__)


class Row(SampleSource):
    """One row of a stream as a source of one sample, so that it is decoded as all images are.

    Args:
        path: of the stream.
        sample: of the row.
        content: of the image file.
    """

    def __init__(self, path: str, sample: Sample, content: bytes) -> None:
        super().__init__(path)
        self.samples, self.content = [sample], content

    @staticmethod
    def accepts(path: str) -> bool:
        """Nothing: it is made of a row."""
        return False

    def open_image(self, index: int) -> Image.Image:
        """The image, not yet decoded."""
        return opened_image(io.BytesIO(self.content))


class Stream(IterableDataset[dict[str, Any]]):
    """The items of a stream.

    Args:
        rows: an iterable data set of `datasets` whose images are not decoded.
        columns: of the image, caption and key.
        path: for messages.
        resolution: of the images.
        tokens: makes the fields of captions; None leaves them out.
    """

    def __init__(
        self, rows: Any, columns: tuple[str, str, str], *, path: str, resolution: int, tokens: Tokens | None
    ) -> None:
        self.rows, self.columns, self.path = rows, columns, path
        self.resolution, self.tokens = resolution, tokens
        self.skipped = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in islice(self.rows, self.skipped, None):
            missing = [column for column in self.columns if row.get(column) is None]
            if missing:
                raise DataError(
                    f"A row of {self.path} has no {missing}, only {sorted(row)}",
                    expected="an image, a caption and a key in every row",
                    remedy="name the columns in the path: ?image=COLUMN&caption=COLUMN&key=COLUMN",
                )
            image, caption, key = (row[column] for column in self.columns)
            text = caption[0] if isinstance(caption, list) else caption
            content = image["bytes"] if isinstance(image, dict) else image
            if not isinstance(text, str) or not text.strip() or not isinstance(content, bytes):
                raise DataError(
                    f"Row {key} of {self.path} has a caption of {type(text).__name__}, an image of "
                    f"{type(content).__name__}",
                    expected="a text that is not empty, and the bytes of an image file",
                    remedy="name other columns in the path",
                )
            pixels = to_pixel_values(Row(self.path, Sample(str(key), text), content).load_image(0), self.resolution)
            tokens = {} if self.tokens is None else self.tokens([text])
            yield {
                "key": str(key),
                "caption": text,
                "pixel_values": pixels,
                **{field: values[0] for field, values in tokens.items()},
            }


class StreamLoader(DataLoader[dict[str, Any]]):
    """A loader that shuffles a stream anew in each epoch.

    Attributes:
        epoch: gives the current one.
        begin: is told the epoch when an iteration begins, and says where: the epoch, and the samples of this process
            that are done in it.
    """

    epoch: Callable[[], int] = staticmethod(lambda: 0)
    begin: Callable[[int], tuple[int, int]] = staticmethod(lambda epoch: (epoch, 0))

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        stream: Any = self.dataset
        epoch, done = self.begin(self.epoch())
        stream.rows.set_epoch(epoch)
        # Workers take turns, so what they have done is known in batches of all of them alone.
        stream.skipped = 0 if self.num_workers else done
        batches = done // (self.batch_size or 1) if self.num_workers else 0
        yield from islice(super().__iter__(), batches, None)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module knows the place; this tells Lightning that resuming is exact."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take up."""


class StreamedImages(LightningDataModule):
    """Captioned images of a stream.

    Args:
        path: `datasets:` with the name of a data set and its columns, the `key` among them.
        resolution: image size, pixels.
        batch_size: samples per step and rank.
        num_workers: loader processes.
        shuffle_buffer: rows among which the next one is drawn; 0 leaves the order as it is.
        seed: of the order; default `seed_everything`'s.
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
    ) -> None:
        super().__init__()
        self.name, self.options = parsed(path)
        if not path.startswith(PREFIX) or "key" not in self.options:
            raise ConfigurationError(
                f"{path!r} names no stream with a key",
                expected="datasets:NAME?key=COLUMN, with a column of names that are the same in every epoch",
                remedy="name the column, such as an id or URL; data without one are read with random access "
                "(memtrain.data.module.TextImageDataModule)",
            )
        require_multiple("resolution", resolution)
        self.path, self.resolution, self.batch_size = path, resolution, batch_size
        self.num_workers, self.shuffle_buffer = num_workers, shuffle_buffer
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self._epoch = self._done = 0
        self._start: tuple[int, int] | None = None

    def _settings(self) -> dict[str, Any]:
        processes = 1 if self.trainer is None else self.trainer.world_size
        order = {
            "processes": processes,
            "num_workers": self.num_workers,
            "shuffle_buffer": self.shuffle_buffer,
            "seed": self.seed,
        }
        workers = {"stream_batch_size": self.batch_size} if self.num_workers else {"batch_size": self.batch_size}
        return {"resolution": self.resolution, "stream_order": order, **workers}

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream, and what the order of its rows rests on."""
        if self.trainer is None:
            return {}
        over = self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        place = {"epoch": self._epoch + 1, "samples": 0} if over else {"epoch": self._epoch, "samples": self._done}
        return {"settings": plain(self._settings()), **place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there, unless the rest of the epoch cannot be known.

        Raises:
            ConfigurationError: naming what may not differ.
        """
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        names = ("resolution", "batch_size") if not state["samples"] else tuple(state["settings"])
        saved = {name: value for name, value in state["settings"].items() if name in names}
        for note in check_settings(saved, self._settings()):
            log.warning("Continued with other settings: %s", note)
        self._start = state["epoch"], state["samples"]

    def _begin(self, epoch: int) -> tuple[int, int]:
        """Where an iteration begins: in the first after a checkpoint, where that stopped."""
        start, self._start = self._start, None
        self._epoch, self._done = start or (epoch, 0)
        return self._epoch, self._done

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count what is trained on; a batch that is fetched ahead is not."""
        if self.trainer is not None and self.trainer.training:
            self._done += self.batch_size
        return batch

    def train_dataloader(self) -> DataLoader[Batch]:
        """The share of this process, shuffled anew in each epoch."""
        datasets, options = imported(), self.options
        image, caption, key = options.get("image", "image"), options.get("caption", "text"), options["key"]
        try:
            rows = datasets.load_dataset(
                self.name,
                options.get("config"),
                split=options.get("split", "train"),
                revision=options.get("revision"),
                streaming=True,
            )
            rows = rows.cast_column(image, datasets.Image(decode=False))
        except Exception as error:  # of the library, its file readers and the network
            raise DataError(
                f"The stream {self.name!r} cannot be opened: {type(error).__name__}: {error}",
                expected="the name of a data set on the Hub, or a folder of its files, and its columns",
                remedy="check name, split and columns in the path",
            ) from error
        trainer = self.trainer
        if self.shuffle_buffer:
            rows = rows.shuffle(seed=self.seed, buffer_size=self.shuffle_buffer)
        if trainer is not None and trainer.world_size > 1:
            split = importlib.import_module("datasets.distributed").split_dataset_by_node
            rows = split(rows, rank=trainer.global_rank, world_size=trainer.world_size)
        module = trainer.lightning_module if trainer is not None else None
        tokenizer = getattr(module, "tokenizer", None)
        tokens = getattr(module, "tokens", None) or (None if tokenizer is None else tokens_by(tokenizer))
        stream = Stream(rows, (image, caption, key), path=self.path, resolution=self.resolution, tokens=tokens)
        loader = StreamLoader(stream, batch_size=self.batch_size, num_workers=self.num_workers, drop_last=True)
        if trainer is not None:
            loader.epoch = lambda: trainer.current_epoch
            loader.begin = self._begin
        return loader

    def val_dataloader(self) -> list[Any]:
        """Nothing: no picture of a stream is held back."""
        return []
