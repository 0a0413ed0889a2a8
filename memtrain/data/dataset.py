"""The map-style dataset over a source. One item is one visit, with pixel values or cached latents."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from memtrain.data.caption_choice import Captions
from memtrain.data.checking import broken_of
from memtrain.data.collating import collated
from memtrain.data.contents import contents_of
from memtrain.data.framing import Frame, Framing, Shape, rows_by_shape
from memtrain.data.images import to_pixel_values
from memtrain.data.kept_latents import KeptLatents, encode_in_memory
from memtrain.data.sample_table import chosen
from memtrain.data.source import BrokenImageError, Sample, SampleSource
from memtrain.data.token_table import Tokens, TokenTable, token_table
from memtrain.data.turns import Turns
from memtrain.functional.keyed_draws import seed_of

Batch = dict[str, Any]
"""See :mod:`memtrain.data.source` for the fields."""


class Visit(NamedTuple):
    """A visit of a position of the dataset in an epoch. All random choices of the item depend on it."""

    position: int
    epoch: int


BROKEN = "broken"
"""Field of an item: JSON that describes the broken sample which this item replaces. It is empty for other items."""
TRIES = 100
"""The number of samples that are tried in the place of a broken one."""


class CaptionedImages(Dataset[dict[str, Any]]):
    """Visits of samples of a source.

    An index is a :class:`Visit`, or a number for the fixed view of the sample under its first caption.

    Args:
        source: the source of the samples.
        indices: the indices (of `source`) of the samples in this dataset, each once.
        resolution: the image size in pixels.
        tokens: the function that makes the fields of tokens (`input_ids`, ...) from captions; None leaves them out.
        visits: the number of visits of each sample; by default one.
        framing: the rule for cutting images; by default center squares of `resolution`.
        captions: the rule for choosing captions; by default the first caption.
        weights: the value of the field `weight` for each sample; by default the field is left out.
        rotating: the rows (of `indices`) that take turns at their positions from epoch to epoch. Rows of one shape
            take turns with each other.
        kept_in: the folder of token tables that the next start reads; None keeps no tables.

    Attributes:
        samples: the samples in the order of `indices`.
        visits: the number of visits of each sample.
        shapes: the rows and columns of each sample's pixel values.
        skips: whether another sample takes the place of a sample whose image cannot be read.
    """

    collate = staticmethod(collated)

    def __init__(
        self,
        source: SampleSource,
        indices: Sequence[int],
        *,
        resolution: int,
        tokens: Tokens | None = None,
        visits: Sequence[int] | None = None,
        framing: Framing | None = None,
        captions: Captions | None = None,
        weights: Sequence[float] | None = None,
        rotating: Sequence[int] = (),
        kept_in: Path | None = None,
    ) -> None:
        self.source, self.resolution = source, resolution
        self.framing, self.captions = framing or Framing(((resolution, resolution),)), captions or Captions()
        self.indices = list(indices)
        self.samples = chosen(source.samples, self.indices)
        self.shapes = self._shapes(self.framing.shapes)
        self._turns: dict[int, Turns] = {}
        self.skips = False
        self.weights = None if weights is None else list(weights)
        self.visits = [1] * len(self.indices) if visits is None else list(visits)
        self.rotating = frozenset(rotating)
        counts = np.asarray(self.visits, np.int64)
        self._row = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._ends = np.cumsum(counts)
        self._latents: Callable[[int, int], dict[str, Any]] | None = None
        self._text: Callable[[int], dict[str, Any]] | None = None
        self._masks: Callable[[int, Frame], Tensor] | None = None
        several = [1 + len(one.alternatives) for one in self.samples] if self._all else [1] * len(self.samples)
        self._first = np.concatenate([[0], np.cumsum(several, dtype=np.int64)])
        self._make_tokens = tokens if self.captions.shuffle_tags else None
        self.tokens = TokenTable()
        if tokens is not None and len(self.samples):
            self.tokens = token_table(self.all_texts(), tokens, folder=kept_in)

    def _shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes) == 1:
            return [shapes[0]] * len(self.samples)
        return [self.framing.shape_of(self.source.look(index).size) for index in self.indices]

    @property
    def varies(self) -> bool:
        """Whether visits of one sample may differ. If so, an index must be a :class:`Visit`."""
        return self.framing.augment.random or self.captions.vary or bool(self.rotating)

    def settle(self, framing: Framing) -> None:
        """Replace the rule for cutting images by one of the same kind with fewer shapes."""
        self.framing = framing
        self.shapes = self._shapes(framing.shapes)
        self._turns = {}

    def shapes_of_visits(self) -> list[Shape]:
        """Return the shape of each position."""
        return [self.shapes[row] for row in self._row.tolist()]

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, index: int | Visit) -> dict[str, Any]:
        position, epoch = index if isinstance(index, Visit) else (index, None)
        row = int(self._row[position])
        number = position - int(self._ends[row]) + self.visits[row]
        if epoch is not None and row in self.rotating:
            row = self._turn_of(position, epoch)
        visit = None if epoch is None else (epoch, number)
        return self._or_another(row, visit) if self.skips else self._item(row, visit)

    def _or_another(self, row: int, visit: tuple[int, int] | None) -> dict[str, Any]:
        """Return the item of a row. If its image cannot be read, return another item that says so under `broken`."""
        try:
            return {**self._item(row, visit), BROKEN: ""}
        except BrokenImageError as error:
            broken = broken_of(self.source, self.indices[row], error)
        # The same sample takes its place at every visit and after every resume.
        for turn in range(TRIES):
            other = seed_of(f"{self.framing.seed} {turn} in place of", self.samples[row].key) % len(self.samples)
            if self.shapes[other] == self.shapes[row] and other not in self.rotating:
                try:
                    return {**self._item(other, visit), BROKEN: json.dumps(broken)}
                except BrokenImageError:
                    continue
        raise BrokenImageError(
            f"{self.samples[row].key!r} cannot be read, and neither can others in its place: {broken.reason}",
            expected="at most a few broken images among many",
            remedy="check the disk that holds the data",
        )

    def _item(self, row: int, visit: tuple[int, int] | None) -> dict[str, Any]:
        sample = self.samples[row]
        item: dict[str, Any] = {"key": sample.key, **self._captioned(row, visit)}
        variant = 0 if self._latents is None else self.framing.variant_of(sample.key, visit)
        frame = self.framing.frame(self.shapes[row], sample.key, visit)
        if self._latents is not None:
            frame = self.framing.variant(self.shapes[row], sample.key, variant)
        if self._masks is not None:
            item["loss_mask"] = self._masks(self.indices[row], frame)
            if not item["loss_mask"].any():
                # The crop removed the part that counts; the fixed view shows some of it.
                variant, frame = 0, Frame(self.shapes[row])
                item["loss_mask"] = self._masks(self.indices[row], frame)
        item |= (
            {"pixel_values": self.pixel_values(row, frame)} if self._latents is None else self._latents(row, variant)
        )
        if self.framing.sized:
            width, height = self.source.look(self.indices[row]).size
            item["original_size"] = torch.tensor([height, width])
            item["crop_top_left"] = torch.tensor(frame.top_left((width, height)))
            item["target_size"] = torch.tensor(frame.shape)
        if self.weights is not None:
            item["weight"] = torch.tensor(self.weights[row])
        return item

    def _captioned(self, row: int, visit: tuple[int, int] | None) -> dict[str, Any]:
        """Return the caption of a visit with its tokens, and with its embeddings if they are cached."""
        texts, number, name = self.texts_of(row), 0, ""
        if visit is not None:
            name = f"{self.framing.seed} {self.samples[row].key}"
            epoch, turn = visit
            number = self.captions.number(len(texts), name, epoch=epoch, visit=turn, visits=max(1, self.visits[row]))
        text = texts[number]
        if visit is not None and self.captions.shuffle_tags:
            text = self.captions.shuffled(text, f"{name} {visit}")
            tokens = {} if self._make_tokens is None else self._make_tokens([text])
            return {"caption": text} | {field: values[0] for field, values in tokens.items()}
        place = int(self._first[row]) + number
        embedded = {} if self._text is None else self._text(place)
        return {"caption": text} | self.tokens.row(place) | embedded

    def _turn_of(self, position: int, epoch: int) -> int:
        """Return the row whose turn it is at a position."""
        if not self._turns:
            for rows in rows_by_shape(self.shapes).values():
                group = [row for row in rows if row in self.rotating]
                members = frozenset(group)
                places = np.flatnonzero(np.isin(self._row, list(members))).tolist()
                turns = Turns(group, places, self.framing.seed)
                self._turns |= dict.fromkeys(places, turns)
        return self._turns[position].row(position, epoch)

    @property
    def prompt_lengths(self) -> list[int] | None:
        """The number of tokens of each sample's caption, in the order of `samples`; None if it is not known."""
        lengths = self.tokens.get("prompt_length")
        return None if lengths is None else lengths[torch.from_numpy(self._first[:-1])].tolist()

    def texts_of(self, row: int) -> list[str]:
        """Return the captions from which a visit of a sample takes one."""
        return self._texts(self.samples[row])

    def _texts(self, sample: Sample) -> list[str]:
        return [sample.caption, *(sample.alternatives if self._all else ())]

    @property
    def _all(self) -> bool:
        return self.captions.choose != "first"

    def all_texts(self) -> list[str]:
        """Return the captions of all samples, in the order of `tokens`."""
        return [text for sample in self.samples for text in self._texts(sample)]

    @property
    def contents(self) -> list[str] | None:
        """A name for the content of each sample's item (pixels, cut, tokens); None if some names are not known.

        The names are known without reading a sample. Two samples with one name have equal items except for their keys.
        """
        return (
            None
            if self._masks is not None
            else contents_of(self, self._first.tolist(), cached=self._latents is not None)
        )

    def pixel_values(self, row: int, frame: Frame | None = None) -> Tensor:
        """Read the `(3, H, W)` pixel values of the sample in `row` (of `samples`); by default of its fixed view."""
        return to_pixel_values(self.source.load_image(self.indices[row]), frame or Frame(self.shapes[row]))

    def views(self) -> list[tuple[int, int]]:
        """Return the row and variant of every entry of a cache of latents."""
        return [(row, variant) for row in range(len(self.samples)) for variant in range(self.framing.variants)]

    def view(self, row: int, variant: int) -> Frame:
        """Return the frame that cuts a variant of a sample."""
        return self.framing.variant(self.shapes[row], self.samples[row].key, variant)

    def cache_latents(self, encode: Callable[[Tensor], Tensor], batch_size: int | None = None) -> None:
        """Encode every view once and keep its latents in memory. Items then carry `latents`.

        Args:
            encode: the function from `(B, 3, H, W)` pixel values to `(B, C, h, w)` scaled latents.
            batch_size: the number of samples encoded at once; by default their size decides.
        """
        kept = encode_in_memory(self, encode, batch_size)
        self.use(latents=KeptLatents(kept) if kept else None)

    def use(
        self,
        *,
        latents: Callable[[int, int], dict[str, Any]] | None = None,
        text: Callable[[int], dict[str, Any]] | None = None,
        masks: Callable[[int, Frame], Tensor] | None = None,
    ) -> None:
        """Take latents and text embeddings from caches, and use masks. An argument of None changes nothing.

        Args:
            latents: the function from row and variant to the fields of a view: `latents` `(C, h, w)`, or their parts.
            text: the function from a row of `tokens` to the fields of that caption.
            masks: the function from an index of the source and a frame to a mask `(1, h, w)`.
        """
        self._latents, self._text, self._masks = latents or self._latents, text or self._text, masks or self._masks

    def unique(self) -> CaptionedImages:
        """Return a dataset of the same samples, each once, that shares tokens and caches."""
        dataset = CaptionedImages(
            self.source,
            self.indices,
            resolution=self.resolution,
            framing=self.framing,
            captions=self.captions,
            weights=self.weights,
        )
        dataset.tokens, dataset.skips = self.tokens, self.skips
        dataset.use(latents=self._latents, text=self._text, masks=self._masks)
        return dataset

    def by_shape(self) -> list[list[int]]:
        """Return the rows of samples, grouped by shape, in a fixed order."""
        return list(rows_by_shape(self.shapes).values())
