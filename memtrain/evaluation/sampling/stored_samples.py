"""Generations on disk: every batch is written as soon as it is complete, so that an interrupted sampling continues.

A folder holds the images and the detectors' readings of one sampling (:mod:`memtrain.evaluation.sampling.stored_images`
describes the files). Its name is a hash of the fingerprint of the pipeline, the prompts, the settings, the size of a
batch (which affects rounding) and the detectors with their options. So the images that are read are the ones that
sampling would give.

Several processes share a sampling: each writes the batches of its part to separate files (`batch-*.safetensors`), and a
process that finds all of them joins them. So the number of processes may change between runs.

Cannot: see what a hook does to a pipeline whose weights it leaves alone, such as an inference-time mitigation.
Samplings with and without one need folders of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import memtrain
from memtrain.detectors.base import Detector
from memtrain.errors import ConfigurationError, RecordError
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.sampling.stored_images import StoredBlocks, read_object
from memtrain.families.stored_arrays import open_arrays
from memtrain.files.lock import locked
from memtrain.models.fingerprint import fingerprint
from memtrain.records import written_whole

IMAGES, READINGS = "images", "readings."
"""Name of the array of images, and prefix of the arrays of readings, before a detector's name."""


Part = tuple[int, int] | None
"""Index and count of the processes that share work; None for a process that only reads the work of all others."""
WHOLE: Part = (0, 1)


class UnfinishedParts(RecordError):
    """The part of this process is complete, and parts of other processes are missing."""

    def __init__(self, what: str, folder: Path) -> None:
        super().__init__(
            f"{what} missing in {folder}",
            expected="the parts of every process",
            remedy="run the missing parts again with the same arguments; complete work is not repeated",
        )


class StoredSamples:
    """The images and readings of one sampling in a folder.

    Args:
        folder: folder, made with the first batch.
        identity: value of :func:`identity_of`.
        count: number of images.
        batch: number of images of a batch.
        part: part of the batches that this process samples.

    Raises:
        ConfigurationError: if the folder holds another sampling.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], *, count: int, batch: int, part: Part = WHOLE
    ) -> None:
        self.folder, self._identity, self._count, self._batch, self._part = folder, identity, count, batch, part
        known = read_object(folder / "identity.json")
        self._blocks: StoredBlocks | None = None
        if known is not None:
            shapes = {name: (kind, tuple(shape)) for name, (kind, shape) in dict(known.get("arrays", {})).items()}
            self._blocks = StoredBlocks(folder, shapes, identity, block=batch)

    def missing(self) -> list[range]:
        """Return the rows of the batches that this process still has to sample."""
        left = [rows for rows in self._left() if not self._file(rows).is_file()]
        if self._part is None:
            return []
        index, count = self._part
        return [rows for rows in left if rows.start // self._batch % count == index]

    def _left(self) -> list[range]:
        """Return the rows of the batches that are not in the joined file."""
        if self._blocks is not None:
            return self._blocks.missing()
        return [range(start, min(start + self._batch, self._count)) for start in range(0, self._count, self._batch)]

    def _file(self, rows: range) -> Path:
        return self.folder / f"batch-{rows.start:08d}.safetensors"

    def put_together(self) -> None:
        """Join the batches of all processes in one file.

        Raises:
            UnfinishedParts: if batches are missing, or another process is joining them.
        """
        left = self._left()
        if missing := sum(not self._file(rows).is_file() for rows in left):
            raise UnfinishedParts(f"{missing} of {-(-self._count // self._batch)} batches of images are", self.folder)
        if not left:
            return
        try:
            with locked(self.folder, doing="joined", name=".lock-merge"):
                known = StoredSamples(self.folder, self._identity, count=self._count, batch=self._batch)
                for rows in known._left():
                    found = _read_batch(self._file(rows))
                    images = found.pop(IMAGES)
                    known.write(rows, images, {name.removeprefix(READINGS): one for name, one in found.items()})
                    self._file(rows).unlink()
        except ConfigurationError as error:
            raise UnfinishedParts("Another process is joining the batches; they are", self.folder) from error

    def write(self, rows: range, images: Tensor, readings: Mapping[str, Tensor]) -> None:
        """Keep a batch from :meth:`missing`.

        Args:
            rows: rows of the batch.
            images: images `(B, 3, H, W)` uint8.
            readings: readings `(B, R, ...)` by detector.
        """
        found = {IMAGES: images, **{READINGS + name: values for name, values in readings.items()}}
        if self._part != WHOLE:
            with written_whole(self._file(rows)) as unfinished:
                save_file({name: values.contiguous() for name, values in found.items()}, unfinished)
            return
        if self._blocks is None:
            shapes = {name: (_type(name, one), (self._count, *one.shape[1:])) for name, one in found.items()}
            self._blocks = StoredBlocks(self.folder, shapes, self._identity, block=self._batch)
        for name, values in found.items():
            self._blocks.arrays[name][rows.start : rows.stop] = values.numpy()
        self._blocks.complete(rows)

    def read(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return all images `(N, 3, H, W)` and readings `(N, R, ...)`, mapped from the file."""
        arrays = open_arrays(self.folder / "images.safetensors")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        images = tensors.pop(IMAGES)
        return images, {name.removeprefix(READINGS): values for name, values in tensors.items()}


def _read_batch(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise RecordError(
            f"{path} cannot be read: {error}",
            expected="a batch of a sampling",
            remedy="delete it and run its part again",
        ) from error


def identity_of(
    pipeline: Any,
    prompts: Sequence[str],
    sampling: Sampling,
    detectors: Sequence[Detector],
    *,
    size: tuple[int, int],
) -> dict[str, Any]:
    """Return everything that images and readings depend on."""
    return {
        "memtrain": memtrain.__version__,
        "pipeline": fingerprint(pipeline),
        "prompts": list(prompts),
        "sampling": {**sampling.said(), "batch_size": sampling.batch_size, "size": list(size)},
        "detectors": [[type(one).__module__, type(one).__qualname__, _options(one)] for one in detectors],
    }


def key_of(identity: Mapping[str, Any]) -> str:
    """Return a name for a value of :func:`identity_of`."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _options(detector: Detector) -> dict[str, str]:
    """Return the options that a detector keeps."""
    return {name: str(value) for name, value in sorted(vars(detector).items()) if not name.startswith("_")}


def _type(name: str, values: Tensor) -> str:
    kind = str(values.dtype).removeprefix("torch.")
    if kind not in ("uint8", "int32", "int64", "float32"):
        raise ConfigurationError(
            f"{name} have type {kind}, which cannot be stored",
            expected="uint8, int32, int64 or float32",
            remedy="make the detector return one of these",
        )
    return kind
