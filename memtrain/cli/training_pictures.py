"""The training pictures of a run or folder as an evaluation compares with them: all, or of very many a part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from memtrain.cli.run_pictures import Pictures
from memtrain.data.border_keys import BorderedSource
from memtrain.data.dataset import CaptionedImages
from memtrain.data.planted import PlantedSource
from memtrain.data.regularisation import JoinedSource
from memtrain.data.source import Sample
from memtrain.errors import ConfigurationError
from memtrain.evaluation.measures.known_looks import KnownLooks, known_looks
from memtrain.evaluation.measures.training_index import TrainingIndex
from memtrain.evaluation.sampling.stored_images import stored_images
from memtrain.evaluation.stages.kept_features import FeaturesFolder
from memtrain.evaluation.stages.many_images import IN_MEMORY, Bounds, ComparedPart, compared_part
from memtrain.evaluation.stages.prompts import Prompt
from memtrain.families.content import files_of
from memtrain.families.descriptors.builtin import BuiltIn
from memtrain.families.looking import default_workers
from memtrain.functional.pixels import to_uint8
from memtrain.records import NEVER_TRAINED

WORTH_KEEPING = 2_000
"""Training images from which on their features are kept on disk."""


def images_of(dataset: CaptionedImages, rows: Sequence[int]) -> torch.Tensor:
    """`(len(rows), 3, H, W)` uint8."""
    return torch.stack([image_of(dataset, row) for row in rows])


def image_of(dataset: CaptionedImages, row: int) -> torch.Tensor:
    """`(3, H, W)` uint8."""
    return to_uint8(dataset.pixel_values(row))


def training_images(train: CaptionedImages, store: Path | None) -> torch.Tensor:
    """`(M, 3, H, W)` uint8, all of a dataset: in memory, or in a file if they are too many for it.

    Args:
        train: the dataset.
        store: folder of the file; None for memory, whatever their number.
    """
    first = image_of(train, 0)
    if store is None or len(train.samples) * first.numel() <= IN_MEMORY:
        return images_of(train, range(len(train.samples)))
    identity = {"images": _identity(train), "resolution": train.resolution}
    height, width = int(first.shape[-2]), int(first.shape[-1])
    return stored_images(
        store,
        len(train.samples),
        (height, width),
        lambda row: image_of(train, row),
        identity=identity,
        workers=default_workers(),
    )


def part_of(
    pictures: Pictures,
    prompts: Sequence[Prompt],
    own_images: torch.Tensor,
    *,
    bounds: Bounds,
    store: Path | None,
    scan: Path | None,
) -> ComparedPart:
    """The part of very many training images that is compared with.

    Args:
        pictures: the pictures of the run or folder.
        prompts: P prompts.
        own_images: `(P, 3, H, W)` uint8.
        bounds: where the index lies, and which part of it this process makes.
        store: folder for images that are too many for memory.
        scan: folder of a scan of the data, if there is one.

    Raises:
        ConfigurationError: if no place is named for the index, or it needs FAISS, which is not installed.
    """
    train = pictures.data.train_dataset
    assert train is not None
    index, content = index_of(train, bounds=bounds, store=store, scan=scan)
    index.build(bounds.part)
    return compared_part(
        [sample.key for sample in train.samples],
        index,
        lambda row: image_of(train, row),
        own=_own_files(pictures, prompts),
        own_images=own_images,
        identity=content,
        most=bounds.most,
        store=store,
    )


def index_of(
    train: CaptionedImages, *, bounds: Bounds, store: Path | None, scan: Path | None
) -> tuple[TrainingIndex, str]:
    """The index of a dataset, which may have to be built, and a name for its images; arguments as :func:`part_of`."""
    folder = bounds.index or (None if store is None else store.parent / "training_index")
    if folder is None:
        raise ConfigurationError(
            f"{len(train.samples)} training images without a place for their index",
            expected="a folder",
            remedy="name one with --index",
        )
    content = _content(train)
    known = None if scan is None else _known(train, scan)
    return TrainingIndex(folder, _Seen(train), content=content, known=known), content


def features_folder(train: CaptionedImages, *, bounds: Bounds, store: Path | None) -> FeaturesFolder | None:
    """Where the features of all training images are kept; None of few, which are described sooner than read."""
    folder = bounds.index or (None if store is None else store.parent / "training_index")
    if folder is None or len(train.samples) < WORTH_KEEPING:
        return None
    return FeaturesFolder(folder / "features", _content(train))


def _content(train: CaptionedImages) -> str:
    """A name for the images of a dataset as they are compared."""
    return hashlib.sha256(json.dumps([_identity(train), train.resolution]).encode()).hexdigest()


def _identity(train: CaptionedImages) -> str:
    """A name for the keys, and for the names, sizes and times of the image files."""
    files = [train.source.stored_in(index) for index in train.indices]
    stats = {path: path.stat() for path in dict.fromkeys(files) if path is not None}
    states = [None if path is None else (str(path), stats[path].st_size, stats[path].st_mtime_ns) for path in files]
    told = json.dumps([[sample.key for sample in train.samples], states])
    return hashlib.sha256(told.encode()).hexdigest()


def _known(train: CaptionedImages, scan: Path) -> KnownLooks | None:
    """The images that a scan of the data has described, by row of the dataset.

    A scan looks at the source as it is opened, before pictures are planted in it: its samples come first, and the
    planted ones behind them.
    """
    scanned = train.source.source if isinstance(train.source, PlantedSource) else train.source
    if isinstance(scanned, BorderedSource | JoinedSource):  # their images are other ones, or come in another order
        return None
    content = files_of(scanned) if scan.is_dir() else None
    if content is None:
        return None
    rows = [index if index < len(scanned.samples) else -1 for index in train.indices]
    return known_looks(scan, content, rows, descriptor=BuiltIn())


def _own_files(pictures: Pictures, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Per prompt the training images that are its own: its picture's files, then those under its caption."""
    place = {sample.key: row for row, sample in enumerate(pictures.samples)}
    found: list[list[int]] = []
    for prompt in prompts:
        if prompt.group in NEVER_TRAINED or prompt.key not in place:
            found.append([])
            continue
        first = place[prompt.key]
        files = pictures.rows[pictures.name(prompt.key)]
        under = pictures.shared.get(pictures.caption(prompt.key), [])
        found.append(list(dict.fromkeys([first, *files, *under])))
    return found


@dataclass(frozen=True)
class _Seen:
    """Training images as an evaluation sees them, for an index."""

    train: CaptionedImages

    @property
    def samples(self) -> Sequence[Sample]:
        """All of them."""
        return self.train.samples

    def load_image(self, index: int) -> Image.Image:
        """The image in the view that is compared."""
        return Image.fromarray(image_of(self.train, index).permute(1, 2, 0).numpy())
