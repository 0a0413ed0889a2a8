"""Any model and a folder of pictures, without a run: does the model give these pictures back?

The folder can be any data that training accepts (docs/data.md), and also images without captions. Files of one picture
are found as in training, and pictures with several files are asked for first. Held-out
pictures come from a folder of their own; where there is none, captions that are made of the data's words say what comes
by chance (:mod:`memtrain.evaluation.stages.null_prompts`). Pictures without captions, or all under one, are asked for
together: the prompt is sampled once, and what comes is compared with each of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from memtrain.cli.asked_pictures import NO_CAPTION, choose_prompts, column_of, samples_of
from memtrain.cli.run_pictures import Pictures
from memtrain.data.caption_choice import Captions
from memtrain.data.known_families import DataScan
from memtrain.data.module import TextImageDataModule
from memtrain.data.source import SampleSource, open_source
from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.many_images import Bounds
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.families.table import Families
from memtrain.models.stock_pipeline import denoiser_of
from memtrain.records import HELDOUT


@dataclass(frozen=True)
class PictureFolder:
    """A folder of pictures as the stage `measure` asks for it; a :class:`memtrain.evaluation.stages.run_samples.Run`.

    Attributes:
        path: the pictures that may come back.
        heldout: pictures that the model cannot have seen, or None.
        caption: the caption of pictures that have none; None for an empty one.
        size: side of the images that are sampled and compared, pixels; None until `at` fills in the pipeline's own.
        model: the model's name, for the results.
    """

    path: str
    heldout: str | None
    caption: str | None
    size: int | None
    model: str

    def check(self) -> None:
        """Refuse what is no data, before a model is loaded.

        Raises:
            DataError: as :func:`memtrain.data.source.open_source`.
        """
        for path in (self.path, self.heldout):
            if path is not None:
                open_source(path, caption=self._caption)

    @property
    def _caption(self) -> str:
        return self.caption or NO_CAPTION

    def at(self, pipeline: Any) -> PictureFolder:
        """The same at the pipeline's own size, where none was asked for."""
        return replace(self, size=self.size or pipeline_size(pipeline))

    def data(self, scan: Path | None = None) -> TextImageDataModule:
        """The pictures as a run would train on them, each once.

        Args:
            scan: folder of the scan for families, which a further evaluation reads again; None for a temporary one.
        """
        assert self.size is not None  # `at` was called
        data = _Data(
            self.path,
            heldout_path=self.heldout,
            heldout_fraction=0.0,
            heldout="split",
            captions=Captions(default=self._caption),
            resolution=self.size,
            scan=DataScan(folder=None if scan is None else str(scan)),
        )
        data.build()
        return data

    def known_prompts(self, *, most: int) -> tuple[list[PromptToScore], torch.Tensor]:
        """Nothing is known of a model's prompts without its run."""
        raise ConfigurationError(
            f"Nothing says which captions of {self.path} the model {self.model} has memorized",
            expected="a finished run, or a file of prompts",
            remedy="name the run with --run, or the file with --prompts",
        )

    def samples(
        self,
        *,
        most: int,
        unique: int,
        group_by: str | None = None,
        store: Path | None = None,
        bounds: Bounds | None = None,
    ) -> RunSamples:
        """Repeated pictures first, others by chance, and what they are compared with."""
        bounds = bounds or Bounds()
        kept = bounds.index or (None if store is None else store.parent)
        scan = None if kept is None else kept / "families"
        data = self.data(scan)
        pictures = Pictures(data, _asked_alone(data))
        chosen = choose_prompts(pictures, most=most, unique=unique)
        config = {"model": self.model, "data": self.path, "heldout": self.heldout}
        found = samples_of(pictures, chosen, config=config, store=store, bounds=bounds, scan=scan)
        prompts = [replace(one, caption="") if one.caption == NO_CAPTION else one for one in found.prompts]
        if not any(one.caption for one in prompts if one.group != HELDOUT):
            # A null has to be asked for as the pictures are: captions would bring their held-out pictures nearer.
            prompts = [replace(one, caption="") for one in prompts]
        grouped = column_of(data, group_by) if group_by is not None else None
        return replace(found, prompts=prompts, visits=None, grouped_by=grouped)


class _Data(TextImageDataModule):
    """Pictures of two folders, whose files may have the same names."""

    def _open(self, path: str) -> SampleSource:
        source = super()._open(path)
        return _Renamed(source, "heldout/") if path == self.heldout_path else source


class _Renamed(SampleSource):
    """A source under other keys."""

    def __init__(self, source: SampleSource, prefix: str) -> None:
        super().__init__(source.path)
        self._source = source
        self.samples = [replace(sample, key=prefix + sample.key) for sample in source.samples]

    @staticmethod
    def accepts(path: str) -> bool:
        return False

    def open_image(self, index: int) -> Image.Image:
        return self._source.open_image(index)


def _asked_alone(data: TextImageDataModule) -> Families | None:
    """The families of the data; where most pictures share one caption it keeps none of them from being asked for."""
    assert data.train_dataset is not None
    if data.families is None:
        return None
    captions = [sample.caption for sample in data.train_dataset.samples]
    most = max(captions.count(text) for text in set(captions))
    return replace(data.families, captions={}) if 2 * most > len(captions) > 1 else data.families


def pipeline_size(pipeline: Any) -> int:
    """Side of the square images that a pipeline makes if it is not told otherwise.

    Raises:
        ConfigurationError: if it does not say.
    """
    side = getattr(pipeline, "default_sample_size", None) or getattr(denoiser_of(pipeline).config, "sample_size", None)
    if not isinstance(side, int):
        raise ConfigurationError(
            f"{type(pipeline).__name__} does not say at which size it samples (found {side!r})",
            expected="one number, the side of a square",
            remedy="name the side in pixels with --size",
        )
    return side * int(getattr(pipeline, "vae_scale_factor", 8))
