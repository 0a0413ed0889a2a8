"""The map-style dataset over a source: one item per visit, with pixel values or cached latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm.auto import tqdm

from memtrain.data.images import to_pixel_values
from memtrain.data.source import SampleSource
from memtrain.functional.memory import images_at_once
from memtrain.functional.tokens import Tokenizer, tokenize

Batch = dict[str, Any]
"""See :mod:`memtrain.data.source` for the fields."""
Tokens = Callable[[Sequence[str]], dict[str, torch.Tensor]]
"""Makes the fields of a batch that hold the token ids of B captions, each `(B, ...)`."""


def tokens_by(tokenizer: Tokenizer) -> Tokens:
    """`input_ids` `(B, T)` and `prompt_length` `(B,)` of captions, by one tokenizer."""
    return partial(_tokens, tokenizer)


def _tokens(tokenizer: Tokenizer, captions: Sequence[str]) -> dict[str, torch.Tensor]:
    input_ids, mask = tokenize(tokenizer, captions)
    return {"input_ids": input_ids, "prompt_length": mask.sum(dim=1)}


class CaptionedImages(Dataset[dict[str, Any]]):
    """Visits of samples of a source.

    Args:
        source: the samples.
        indices: the samples of `source` in this dataset, each once.
        resolution: image size, pixels.
        tokens: makes `input_ids`, `prompt_length` and the like of captions; None leaves them out.
        visits: how often each sample occurs; default once.
    """

    def __init__(
        self,
        source: SampleSource,
        indices: Sequence[int],
        *,
        resolution: int,
        tokens: Tokens | None = None,
        visits: Sequence[int] | None = None,
    ) -> None:
        self.source = source
        self.resolution = resolution
        self.indices = list(indices)
        self.samples = [source.samples[index] for index in self.indices]
        repeats = [1] * len(self.indices) if visits is None else list(visits)
        self._rows = [row for row, count in enumerate(repeats) for _ in range(count)]
        self._latents: torch.Tensor | None = None
        self._tokens: dict[str, torch.Tensor] = {}
        if tokens is not None and self.samples:
            self._tokens = tokens([sample.caption for sample in self.samples])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        row = self._rows[position]
        sample = self.samples[row]
        item: dict[str, Any] = {"key": sample.key, "caption": sample.caption}
        if self._latents is None:
            item["pixel_values"] = self.pixel_values(row)
        else:
            item["latents"] = self._latents[row]
        return item | {name: values[row] for name, values in self._tokens.items()}

    @property
    def prompt_lengths(self) -> list[int] | None:
        """Tokens of each sample's caption, in the order of `samples`; None where they are not known."""
        lengths = self._tokens.get("prompt_length")
        return None if lengths is None else lengths.tolist()

    def pixel_values(self, row: int) -> torch.Tensor:
        """`(3, H, W)` pixel values of the sample in `row` (of `samples`)."""
        return to_pixel_values(self.source.load_image(self.indices[row]), self.resolution)

    def cache_latents(self, encode: Callable[[torch.Tensor], torch.Tensor], batch_size: int | None = None) -> None:
        """Encode every sample once and keep its latents in memory; items then carry `latents`.

        Args:
            encode: `(B, 3, H, W)` pixel values to `(B, C, h, w)` scaled latents.
            batch_size: samples encoded at once; default by their size.
        """
        batch_size = batch_size or images_at_once(self.resolution, self.resolution)
        starts = range(0, len(self.samples), batch_size)
        chunks = []
        for start in tqdm(starts, desc="encoding latents", unit="batch", leave=False):
            rows = range(start, min(start + batch_size, len(self.samples)))
            chunks.append(encode(torch.stack([self.pixel_values(row) for row in rows])).float().cpu())
        self._latents = torch.cat(chunks) if chunks else None

    def unique(self) -> CaptionedImages:
        """The same samples once each, sharing tokens and cached latents."""
        dataset = CaptionedImages(self.source, self.indices, resolution=self.resolution)
        dataset._latents, dataset._tokens = self._latents, self._tokens
        return dataset


def loader(dataset: CaptionedImages, **options: Any) -> DataLoader[Batch]:
    """A DataLoader with torch's own collation, which turns items into a batch as the contract has it."""
    return DataLoader(dataset, collate_fn=default_collate, **options)
