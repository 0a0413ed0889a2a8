"""The cost of finding families during training: milliseconds a batch, against a training step of the embedded model.

    python benchmarks/online_families.py --json benchmarks/online_families.json

Three parts are timed. They are looks and hashes of a batch (on the device), the update of the index with a full memory
(on the host, every `calibrate_every` batches, given per batch), and the comparison with held-out pictures. The data are
of the worst kind: every sample is new, in every batch. A sample that was met often enough costs nothing. The table also
has the bytes of a saved state for each picture. For the embedded clip art, it has the share of 1,213 different pictures
that are merged, and how many of 200 copies of ten others come into one family.
"""

from __future__ import annotations

import io
import statistics
import time
from json import dumps
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from experiment import ROOT, median_interval
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from memtrain.data.images import to_pixel_values
from memtrain.data.source import open_source
from memtrain.families.figures import looks
from memtrain.families.online import PICTURES, OnlineFamilies, Seen
from memtrain.monitoring.options import WatchSettings

COPIES, PLANTED = 200, 10
EVERY = WatchSettings().calibrate_every
"""Batches between updates."""


def timed(work: Any, repeats: int) -> list[float]:
    """Milliseconds of each call."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(1000 * (time.perf_counter() - began))
    return found


def full_index(pictures: int, packed: Tensor) -> OnlineFamilies:
    """An index that remembers as many pictures as it may."""
    index, generator = OnlineFamilies(pictures=pictures), torch.Generator().manual_seed(0)
    for start in range(0, pictures, 1024):
        rows = torch.randint(-100, 100, (1024, packed.shape[1]), generator=generator, dtype=torch.int8)
        index.add([Seen(f"old{start + row}", rows[row], f"old{start + row}") for row in range(1024)])
    return index


def costs(batch: int, *, pictures: int, repeats: int, device: str) -> dict[str, Any]:
    """Median milliseconds of a step and of the parts."""
    pipeline = StableDiffusionPipeline.from_pretrained(ROOT / "assets" / "tiny-sd", safety_checker=None)
    unet = pipeline.unet.to(device).train()
    side, channels = unet.config.sample_size, unet.config.in_channels
    latents = torch.randn(batch, channels, side, side, device=device)
    text = torch.randn(batch, 77, unet.config.cross_attention_dim, device=device)
    steps = torch.randint(1000, (batch,), device=device)

    def step() -> None:
        unet(latents, steps, text).sample.square().mean().backward()
        unet.zero_grad()

    pixels = torch.randn(batch, 3, 8 * side, 8 * side, device=device)
    packed = looks(latents)
    assert packed is not None
    index, number = full_index(pictures, packed), 0

    def update() -> None:
        nonlocal number
        number += 1
        rows = torch.randint(-100, 100, (EVERY * batch, packed.shape[1]), dtype=torch.int8)
        index.add([Seen(f"new{number}-{row}", rows[row], f"new{number}-{row}") for row in range(EVERY * batch)])

    step()
    parts = {
        "step": timed(step, repeats),
        "looks_of_latents": timed(lambda: looks(latents), repeats),
        "looks_of_pixels": timed(lambda: looks(pixels), repeats),
        "update": [value / EVERY for value in timed(update, repeats)],
    }
    saved = io.BytesIO()
    torch.save(index.state_dict(), saved)
    figures = {
        name: {"median": statistics.median(values), "interval": median_interval(values)}
        for name, values in parts.items()
    }
    added = statistics.median(parts["looks_of_pixels"]) + statistics.median(parts["update"])
    return {
        "batch": batch,
        "milliseconds": figures,
        "share_of_step": added / statistics.median(parts["step"]),
        "bytes_a_picture": saved.tell() / pictures,
    }


def found() -> dict[str, Any]:
    """Merged pictures and families of copies on the embedded clip art, in one pass in batches of 16."""
    source = open_source(str(ROOT / "assets" / "clipart-pd.tar"))
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(source), generator=draw).tolist()
    visits = [(number, 0) for number in order[PLANTED:]]
    visits += [(number, copy) for number in order[:PLANTED] for copy in range(COPIES)]
    visits = [visits[place] for place in torch.randperm(len(visits), generator=draw).tolist()]
    index = OnlineFamilies()
    for start in range(0, len(visits), 16):
        part = visits[start : start + 16]
        pixels = torch.stack([to_pixel_values(source.load_image(number), 64) for number, _ in part])
        # As a loader flips at random.
        turned = torch.rand(len(pixels), generator=draw)[:, None, None, None] < 0.5
        pixels = torch.where(turned, pixels.flip(-1), pixels)
        packed = looks(pixels)
        assert packed is not None
        index.add([Seen(f"{number}-{copy}", row) for (number, copy), row in zip(part, packed, strict=True)])
    names = {number: [index.picture(f"{number}-{copy}") for copy in range(COPIES)] for number in order[:PLANTED]}
    alone = [f"{number}-0" for number in order[PLANTED:]]
    return {
        "largest_family_of_200_copies": [max(map(keys.count, set(keys))) for keys in names.values()],
        "different_pictures": len(alone),
        "merged": sum(len(index.picture_members(index.picture(key))) > 1 for key in alone),
        "threshold": index.memory.threshold(),
    }


def main(json: str | None = None, repeats: int = 20, pictures: int = PICTURES) -> None:
    """Measure and print.

    Args:
        json: File for the results.
        repeats: Number of repetitions of each timed piece.
        pictures: That are remembered.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [costs(batch, pictures=pictures, repeats=repeats, device=device) for batch in (16, 256)]
    table = Table(title=f"Milliseconds a batch, {pictures:,} pictures remembered, every sample new ({device})")
    for name in ("batch", *rows[0]["milliseconds"], "share of step", "bytes a picture"):
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        shown = [f"{interval['median']:.1f}" for interval in row["milliseconds"].values()]
        table.add_row(str(row["batch"]), *shown, f"{row['share_of_step']:.1%}", f"{row['bytes_a_picture']:.0f}")
    families = found()
    Console().print(table)
    print(
        f"{families['merged']} of {families['different_pictures']:,} different pictures are in a family with another. "
        f"The largest family of 200 copies, half of them mirrored, has {families['largest_family_of_200_copies']}."
    )
    if json is not None:
        results = {"device": device, "pictures": pictures, "costs": rows, "found": families}
        Path(json).write_text(dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
