"""A cache on disk that training fills: latents and embeddings are made at a sample's first visit, and kept.

An item without kept latents (embeddings) brings its pixels (its tokens). The data module makes the missing
entries when the batch is on the device, in full precision and without gradients. The batch then goes on as if the cache
had been full. New entries are collected in shards of the folder, under the same names as in
:mod:`memtrain.data.disk_cache`. A shard is written when it is full, at each checkpoint and when the run ends. When an
entry is missing, the folder is checked for changes, so entries that other processes wrote meanwhile are found.
Cost: the autoencoder stays on the device and takes part in the first epoch. A killed run loses the entries that it made
since the last shard or checkpoint, at most 64 MB. Two processes that visit one image at the same time make it twice. An
image whose content is not known yet is decoded to find its name, and the name is kept beside the latents.
Cannot: know which entries no run needs any more, so all names in the folder stay in memory, 0.3 kB each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from memtrain.data.collating import LATENTS, TEXT
from memtrain.data.dataset import CaptionedImages
from memtrain.data.disk_cache import CAPTIONS_AT_ONCE, Processes, caption_key, encoded_together, view_key
from memtrain.data.images import to_pixel_values
from memtrain.data.tensor_shards import ShardWriter, TensorShards
from memtrain.data.token_table import TokenTable
from memtrain.functional.memory import images_at_once

log = logging.getLogger(__name__)

Encode = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""The function from the fields to encode, each `(B, ...)`, to the fields of entries."""


class GrowingLatents:
    """Latents of a dataset, or the pixels from which they are made.

    Args:
        dataset: the dataset of the images.
        shards: the shards, already looked through.
    """

    def __init__(self, dataset: CaptionedImages, shards: TensorShards) -> None:
        self.dataset, self.shards = dataset, shards

    def __call__(self, row: int, variant: int) -> dict[str, Any]:
        """Return `latents` `(C, h, w)`, or `pixel_values` `(3, H, W)` with the name of their latents."""
        source, index = self.dataset.source, self.dataset.indices[row]
        image = None if source.known_look(index) is not None else source.load_image(index)
        frame = self.dataset.view(row, variant)
        name = view_key(source.look(index, image), frame)
        if (kept := self.shards.find(name)) is not None:
            return {**kept, LATENTS: ""}
        return {
            "pixel_values": to_pixel_values(source.load_image(index) if image is None else image, frame),
            LATENTS: name,
        }


class GrowingText:
    """Embeddings of captions, as far as they exist yet.

    Args:
        tokens: the tokens of the captions.
        shards: the shards, already looked through.
    """

    def __init__(self, tokens: TokenTable, shards: TensorShards) -> None:
        self.tokens, self.shards = tokens, shards

    def __call__(self, place: int) -> dict[str, Any]:
        """Return the fields of a caption, or the name under which they will be kept."""
        name = caption_key(self.tokens.row(place))
        kept = self.shards.find(name)
        return {TEXT: name} if kept is None else {**kept, TEXT: ""}


class Entries:
    """Entries of a folder, made when they are first needed.

    Args:
        folder: the folder of the encoder.
        encode: the function that makes the fields of entries.
        processes: the processes of the run; the first one removes broken shards.
    """

    def __init__(self, folder: Path, encode: Encode, *, processes: Processes) -> None:
        self.encode, self.writer, self.shards = encode, ShardWriter(folder), TensorShards(folder)
        if processes.rank == 0:
            self.shards.look(clean=True)
        processes.barrier()
        if processes.rank:
            self.shards.look()

    def get(self, names: Sequence[str], fields: Mapping[str, Tensor], *, at_once: int) -> dict[str, Tensor]:
        """Return fields `(B, ...)` of entries, on the device of the given fields.

        Args:
            names: the names of the entries, which may repeat.
            fields: the fields to encode, `(B, ...)`.
            at_once: the largest number of rows that are encoded in one forward.
        """
        found: dict[str, dict[str, Tensor]] = {}
        lacking: dict[str, int] = {}
        for row, name in enumerate(names):
            # Another worker, process or batch may have made the same entry since the item was read.
            kept = found.get(name) or self.writer.collected(name) or self.shards.find(name)
            if kept is None:
                lacking.setdefault(name, row)
            else:
                found[name] = kept
        rows, device = list(lacking.values()), next(iter(fields.values())).device
        at_once = encoded_together(device.type, at_once)
        for start in range(0, len(rows), at_once):
            chunk = rows[start : start + at_once]
            made = self._made({name: values[chunk] for name, values in fields.items()})
            for number, row in enumerate(chunk):
                found[names[row]] = {name: values[number] for name, values in made.items()}
                self._keep(names[row], found[names[row]])
        return {field: torch.stack([found[name][field].to(device) for name in names]) for field in found[names[0]]}

    def _made(self, fields: dict[str, Tensor]) -> dict[str, Tensor]:
        """Encode fields, and return the result on the CPU, in the precision of an encoding before training."""
        kind = next(iter(fields.values())).device.type
        with torch.inference_mode(mode=False), torch.no_grad(), torch.autocast(kind, enabled=False):
            return {name: values.cpu() for name, values in self.encode(fields).items()}

    def _keep(self, name: str, entry: dict[str, Tensor]) -> None:
        try:
            self.writer.add(name, entry)
        except (OSError, SafetensorError) as error:
            self._give_up(error)

    def flush(self) -> None:
        """Write the collected entries. Entries that cannot be written are made again another time."""
        try:
            self.writer.flush()
        except (OSError, SafetensorError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("The encoded entries cannot be kept in %s: %s", self.writer.folder, error)
        self.writer = ShardWriter(self.writer.folder)


class Filling:
    """Completes batches, and keeps the new entries.

    Args:
        latents: the entries of images; None if this class does not cache them.
        text: the entries of captions; None if they are not cached.
    """

    def __init__(self, latents: Entries | None, text: Entries | None) -> None:
        self.latents, self.text = latents, text

    def serve(self, datasets: Sequence[CaptionedImages]) -> None:
        """Give the items of datasets the kept entries, or the parts that entries are made of."""
        for dataset in datasets:
            if self.latents is not None:
                dataset.use(latents=GrowingLatents(dataset, self.latents.shards))
            if self.text is not None and dataset.tokens:
                dataset.use(text=GrowingText(dataset.tokens, self.text.shards))

    def empty_caption(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the embeddings of the empty caption, `(1, ...)`, from its tokens on the device."""
        if self.text is None:
            return {}
        # The tokens have the form of a table entry; the table may keep other types.
        name = caption_key({field: values[0].cpu() for field, values in tokens.items()})
        return {field: values.cpu() for field, values in self.text.get([name], tokens, at_once=1).items()}

    def complete(self, batch: dict[str, Any], token_fields: Sequence[str]) -> dict[str, Any]:
        """Complete a batch on the device with everything that its rows lack.

        Args:
            batch: the batch, changed in place; missing embeddings are present with other values.
            token_fields: the fields from which captions are encoded.
        """
        part = batch.pop(LATENTS, None)
        if part is not None and self.latents is not None:
            pixels, names = part["pixel_values"], [name for name in part["names"] if name]
            made = self.latents.get(names, {"pixel_values": pixels}, at_once=images_at_once(*pixels.shape[-2:]))
            batch |= together(part["names"], part["known"], made)
            # The transfer of a batch does the same if training uses another precision than float32.
            batch["latents"] = batch["latents"].to(pixels.dtype)
        part = batch.pop(TEXT, None)
        if part is not None and self.text is not None:
            rows = [row for row, name in enumerate(part["names"]) if name]
            fields = {name: batch[name][rows] for name in token_fields}
            names = [part["names"][row] for row in rows]
            for field, values in self.text.get(names, fields, at_once=CAPTIONS_AT_ONCE).items():
                batch[field][rows] = values.to(batch[field].dtype)
        return batch

    def flush(self) -> None:
        """Write the new entries."""
        for one in (self.latents, self.text):
            if one is not None:
                one.flush()


def together(names: Sequence[str], known: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge fields of all rows: rows with a name from `made`, the others from `known`, each in their order."""
    lack = torch.tensor([bool(name) for name in names])
    found = {}
    for field in made or known:
        some = made[field] if made else known[field]
        found[field] = some.new_empty((len(names), *some.shape[1:]))
        for rows, values in ((lack, made), (~lack, known)):
            if rows.any():
                found[field][rows.to(some.device)] = values[field].to(some)
    return found
