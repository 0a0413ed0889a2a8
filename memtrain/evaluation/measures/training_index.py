"""An index of training images: a descriptor of each, kept on disk, in which the nearest of any image are found.

Method: the built-in descriptor (:mod:`memtrain.families.descriptors.builtin`) of every training image as an evaluation
sees it. It proposes which training images a generation is compared with; the measures of copying then compare the
images themselves. Descriptors are kept in parts like those of a scan (:mod:`memtrain.families.look_parts`), so that an
interrupted evaluation continues and tasks of an array share the work. The folder is named after everything that they
depend on, so that evaluations of all checkpoints of a run use the same index. Where a scan has described a picture that
training does not crop, its descriptor is reused.
Search: up to :data:`EXACT_UP_TO` images, all descriptors are compared with all queries, in blocks. Above, FAISS (extra
`scan`) compares descriptors of 128 numbers (principal components, in `short.safetensors`). Four times as many images as
needed are found so, and the nearest of them by the full descriptors are kept. A graph
(:mod:`memtrain.families.faiss_search`) answers faster, but takes 0.4 ms an image to build, which pays for as many
queries as there are images. Among equal similarities the first image comes first. Each query is searched whole and
without a sixteenth at each edge, where a frame would be.
Cost: 1 ms an image for the descriptor on one core, without decoding; 3.3 kB of disk, above 100,000 images 0.5 kB more.
A search reads the file once, in blocks, whatever the number of queries; memory is bounded by a block.
Cannot: propose a picture whose copy looks different, such as a small part of it; `benchmarks/scale_index.py` measures
how many edited copies are found.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtrain.evaluation.measures.copying.base import pictures
from memtrain.evaluation.measures.known_looks import KnownLooks
from memtrain.evaluation.measures.nearest_descriptors import (
    blocks_of,
    nearest_exact,
    nearest_faiss,
    principal_components,
    shortened,
)
from memtrain.families.descriptors.base import Descriptor
from memtrain.families.descriptors.builtin import BuiltIn
from memtrain.families.faiss_search import faiss_module
from memtrain.families.look_parts import ALL, GROUP, LookParts, Looks
from memtrain.families.looking import ScannedSource, default_workers, look_at
from memtrain.families.stored_arrays import create_arrays, open_arrays
from memtrain.files.progress import progress_bar
from memtrain.records import written_whole

EXACT_UP_TO = 100_000
"""Images up to which all descriptors are compared in full."""
SAMPLE, MORE = 20_000, 4
"""Number of descriptors for the principal components, and the factor of candidates over images needed."""
EDGE = 16
"""Part of a side that is left out at each edge of the inner query."""
_FORMAT = 1
"""Format of the index; an index of another format is not read."""


class TrainingIndex:
    """Descriptors of N training images in a folder.

    Args:
        folder: folder of indexes; this one is in a folder named after its key.
        source: source of the images, as an evaluation sees them.
        content: lasting name of the images, such as a hash of files, their sizes and times, and their crops.
        descriptor: descriptor of images; default the built-in one.
        known: descriptors of a scan.
    """

    def __init__(
        self,
        folder: Path,
        source: ScannedSource,
        *,
        content: str,
        descriptor: Descriptor | None = None,
        known: KnownLooks | None = None,
    ) -> None:
        self._source, self._descriptor, self._known = source, descriptor or BuiltIn(), known
        identity = {
            "format": _FORMAT,
            "content": content,
            "descriptor": self.described_by,
            "known": None if known is None else known.name,
        }
        self._parts = LookParts(folder, identity, samples=len(source.samples))

    def __len__(self) -> int:
        return len(self._source.samples)

    @property
    def folder(self) -> Path:
        """Folder of the index."""
        return self._parts.folder

    @property
    def described_by(self) -> str:
        """Name and version of the descriptor."""
        return f"{self._descriptor.name} {self._descriptor.version}"

    @property
    def search(self) -> str:
        """Method of the search: `exact` or `faiss`."""
        return "exact" if len(self) <= EXACT_UP_TO else "faiss"

    def build(
        self,
        part: tuple[int, int] = (0, 1),
        *,
        others: bool = True,
        workers: int | None = None,
        progress: bool = True,
    ) -> None:
        """Describe the remaining images: the own part first, then parts that no other process has done meanwhile.

        Args:
            part: index and count of processes that build the same index.
            others: whether to continue with the parts of other processes.
            workers: number of threads that decode.
            progress: whether a progress bar is shown.

        Raises:
            ConfigurationError: if the search needs FAISS, which is not installed.
        """
        if self.search == "faiss":
            faiss_module()  # refused now, not after hours
        missing = self._parts.missing()
        index, count = part
        own = set(self._parts.ranges[index::count])
        missing = [one for one in missing if one in own] + [one for one in missing if others and one not in own]
        with (
            ThreadPoolExecutor(workers or default_workers()) as pool,
            progress_bar(
                total=sum(last - first + 1 for first, last in missing),
                desc="describing training images",
                unit="image",
                disable=not progress or not missing,
            ) as bar,
        ):
            for one in missing:
                if not self._parts.has(one):
                    self._parts.append(one, self._looked_at(one, pool))
                bar.update(one[1] - one[0] + 1)

    def _looked_at(self, part: tuple[int, int], pool: ThreadPoolExecutor) -> Looks:
        """Return the descriptors of a range: known ones from a scan, and the rest computed."""
        rows = np.arange(part[0], part[1] + 1)
        at = np.full(len(rows), -1) if self._known is None else self._known.place[rows]
        new = rows[at < 0].tolist()
        groups = [new[start : start + GROUP] for start in range(0, len(new), GROUP)]
        found = [_without_pictures(one) for one in look_at(self._source, self._descriptor, groups, pool=pool)]
        if self._known is not None and (at >= 0).any():
            found.append(_taken_over(rows[at >= 0], np.asarray(self._known.descriptors[at[at >= 0]])))
        joined = Looks.joined(found)
        order = np.argsort(joined.rows, kind="stable")
        # The time is left out, so that two processes write the same bytes.
        return replace(
            joined,
            rows=joined.rows[order],
            hashes=joined.hashes[order],
            descriptors=joined.descriptors[order],
            thumbnails=joined.thumbnails[order],
            sizes=joined.sizes[order],
            seconds=0.0,
        )

    def nearest(self, images: Tensor, count: int) -> Tensor:
        """Return the nearest training images of each image.

        Args:
            images: images `(n, 3, H, W)` uint8.
            count: number of nearest training images of each.

        Returns:
            `(n, k)` int64 numbers of training images; k is `count`, or fewer where there are fewer.

        Raises:
            RecordError: if the index is not complete.
        """
        height, width = (int(side) // EDGE for side in images.shape[-2:])
        inner = images[..., height : images.shape[-2] - height, width : images.shape[-1] - width]
        queries = np.concatenate([self._descriptor.describe(pictures(one)) for one in (images, inner)])
        similarity, at = self.search_descriptors(queries, count)
        n = len(images)
        # For an image that both queries find, the higher similarity counts.
        both, rows = np.concatenate([similarity[:n], similarity[n:]], 1), np.concatenate([at[:n], at[n:]], 1)
        found = np.empty((n, similarity.shape[1]), np.int64)
        for row in range(n):
            order = np.lexsort((rows[row], -both[row]))
            _, first = np.unique(rows[row][order], return_index=True)
            found[row] = rows[row][order][np.sort(first)][: found.shape[1]]
        return torch.from_numpy(found)

    def search_descriptors(
        self, queries: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return similarity and number of the nearest images of each query, `(n, k)` each, the nearest first."""
        self._parts.merged()
        path = self.folder / ALL
        if self.search == "exact":
            similarity, place = nearest_exact(queries, blocks_of(path, "descriptors"), count)
        else:
            similarity, place = self.search_shortened(queries, count)
        return similarity, open_arrays(path)["rows"][place]

    def search_shortened(
        self, queries: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the same by FAISS, with positions in the file instead of numbers."""
        mean, components = self._short()
        short = shortened(queries, mean, components)
        _, at = nearest_faiss(short, blocks_of(self.folder / "short.safetensors", "short"), MORE * count)
        similarity = np.empty(at.shape, np.float32)
        for row, columns in enumerate(at):
            order = np.sort(columns)  # in the order of the file
            similarity[row] = open_arrays(self.folder / ALL)["descriptors"][order] @ queries[row]
            at[row] = order
        best = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(similarity, best, 1), np.take_along_axis(at, best, 1)

    def _short(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean `(D,)` and principal components `(D, 128)`; the first call computes them and shortens all."""
        path = self.folder / "short.safetensors"
        if not path.is_file():
            count = len(open_arrays(self.folder / ALL)["rows"])
            some = np.sort(np.random.default_rng(0).permutation(count)[:SAMPLE])
            # In runs of rows: rows of a mapped file load their neighbours into memory, until the mapping is closed.
            stretches = np.array_split(some, -(-len(some) // 500))
            taken = [np.asarray(open_arrays(self.folder / ALL)["descriptors"][one]) for one in stretches]
            mean, components = principal_components(np.concatenate(taken))
            shapes = {
                "short": ("float32", (count, components.shape[1])),
                "mean": ("float32", mean.shape),
                "components": ("float32", components.shape),
            }
            with written_whole(path) as unfinished:
                to = create_arrays(unfinished, shapes)
                to["mean"][:], to["components"][:] = mean, components
                for start, block in blocks_of(self.folder / ALL, "descriptors"):
                    to["short"][start : start + len(block)] = shortened(block, mean, components)
        arrays = open_arrays(path)
        return np.array(arrays["mean"]), np.array(arrays["components"])


def _without_pictures(looks: Looks) -> Looks:
    """Remove thumbnails, hashes and sizes, which belong to a scan and not to an index."""
    return replace(
        looks,
        hashes=np.zeros((len(looks), 0), np.uint8),
        thumbnails=np.zeros((len(looks), 0), np.uint8),
        sizes=np.zeros((len(looks), 0), np.int32),
    )


def _taken_over(rows: NDArray[np.int64], descriptors: NDArray[np.float32]) -> Looks:
    return _without_pictures(
        Looks(
            rows=rows,
            hashes=np.zeros((len(rows), 0), np.uint8),
            descriptors=descriptors,
            thumbnails=np.zeros((len(rows), 0), np.uint8),
            sizes=np.zeros((len(rows), 0), np.int32),
            broken={},
        )
    )
