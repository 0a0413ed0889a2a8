"""Memory estimates of common models in training for several GPUs, without weights or a GPU.

    python benchmarks/memory.py --json benchmarks/memory.json

Adapters have rank 16 on the attention layers, in fp32 with a frozen bf16 base, with AdamW, gradient checkpointing and
batches of one. Latents and text embeddings are cached, so autoencoder and text encoders are not on the device (their
sizes stand below the table). Full trainings are in fp32 with bf16 autocast and an average. The first row is that of
benchmarks/gpu.json, whose measured peak stands beside.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from json import dumps, loads
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from experiment import ROOT
from jsonargparse import auto_cli
from model_shapes import LORA_TARGETS, SHAPES, encoder
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from memtrain.training.memory_estimate import MemoryEstimate, estimate_memory

GIB = 2**30
CARD = 24 * 10**9
"""A card of 24 GB has 24 × 10⁹ bytes at least; most say 24 GiB, of which a display may take some."""


@dataclass(frozen=True)
class Row:
    """A training.

    Attributes:
        model: the name of a model in :data:`model_shapes.SHAPES`.
        pixels: side of the images.
        batch: samples on the device.
        rank: the rank of the adapters; None for a full training.
        bits: the bits of the frozen base model.
        checkpointing: whether gradients are checkpointed.
        beside: whether autoencoder and text encoders are on the device.
    """

    model: str
    pixels: int
    batch: int = 1
    rank: int | None = 16
    bits: int = 16
    checkpointing: bool = True
    beside: bool = False

    @property
    def name(self) -> str:
        """In a word or two."""
        return f"{self.model} {'full' if self.rank is None else f'LoRA {self.rank}'}"

    def make(self) -> nn.Module:
        """The denoiser as it is trained."""
        with torch.device("meta"):
            model: Any = SHAPES[self.model].make()
            if self.rank is not None:
                nn.Module.to(model, torch.bfloat16).requires_grad_(False)
                model.add_adapter(LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=list(LORA_TARGETS)))
                cast_training_params(model)
        if self.checkpointing:
            model.enable_gradient_checkpointing()
        made: nn.Module = model
        return made

    def estimate(self) -> MemoryEstimate:
        """Simulate it."""
        shape = SHAPES[self.model]
        others = {}
        if self.beside:
            with torch.device("meta"):
                others = {name: encoder(name) for name in shape.encoders} | {"vae": shape.vae()}
        dtype = torch.float32 if self.rank is None else torch.bfloat16
        return estimate_memory(
            self.make(),
            lambda: shape.call(self.batch, self.pixels, dtype=dtype),
            autocast=torch.bfloat16,
            average=self.rank is None,
            others=others,
            weight_bits=None if self.bits == 16 else self.bits,
        )


ROWS = (
    Row("sd15", 512, batch=4, rank=None, beside=True),
    Row("sd15", 512, batch=1, rank=None),
    Row("sd15", 512),
    Row("sd15", 512, batch=8),
    Row("sdxl", 1024, rank=None),
    Row("sdxl", 1024),
    Row("sdxl", 1024, checkpointing=False),
    Row("sdxl", 1024, batch=4),
    Row("sd35_medium", 1024),
    Row("flux1_dev", 512),
    Row("flux1_dev", 512, bits=8),
    Row("flux1_dev", 1024, bits=8),
    Row("flux1_dev", 1024, bits=4),
)


def main(json: str | None = None) -> None:
    """Print the table.

    Args:
        json: where to write the figures.
    """
    rows, measured = [], _measured()
    table = Table(title="Memory of a training, estimated", title_justify="left")
    for head in ("training", "pixels", "batch", "base, bits", "trained", "peak, GiB", "needed, GiB", "24 GB"):
        table.add_column(head, justify="left" if head == "training" else "right")
    for number, row in enumerate(ROWS):
        start = time.perf_counter()
        found = row.estimate()
        fits = found.needed <= CARD
        figures = {**row.__dict__, **found.said(), "fits_24_gb": fits, "seconds": time.perf_counter() - start}
        if number == 0:
            figures["measured_peak_gib"] = measured
        rows.append(figures)
        name = row.name + ("" if row.checkpointing else ", no checkpointing")
        beside = f" ({measured:.1f} measured)" if number == 0 else ""
        table.add_row(
            name,
            str(row.pixels),
            str(row.batch),
            "32" if row.rank is None else str(row.bits),
            f"{found.trained / 1e6:,.1f} M",
            f"{found.peak / GIB:.1f}{beside}",
            f"{found.needed / GIB:.1f}",
            "fits" if fits else "no",
        )
    Console(width=120).print(table)
    sizes = {name: _bytes(name) for name in ("clip_l", "clip_g", "t5_xxl")}
    print("Text encoders in bf16, GiB: " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in sizes.items()))
    if json is not None:
        content = {"rows": rows, "text_encoders_bf16": sizes, "torch": torch.__version__}
        Path(json).write_text(dumps(content, indent=2) + "\n", encoding="utf-8")


def _bytes(name: str) -> int:
    with torch.device("meta"):
        return sum(2 * one.numel() for one in encoder(name).parameters())


def _measured() -> float:
    kept = loads((ROOT / "benchmarks" / "gpu.json").read_text(encoding="utf-8"))
    return float(kept["parts"]["sd15"]["figures"]["peak_gib"])


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
