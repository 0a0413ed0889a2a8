"""The memory of every stage of an evaluation on a card of 24 GB, estimated without weights or a GPU, and counted.

    python benchmarks/evaluation_memory.py --json benchmarks/evaluation_memory.json

Each stage is its fullest moment, on tensors without content (memtrain/models/simulated_memory.py), with all parts of
the pipeline on the device. A denoiser call has as many images as `evaluate.py` finds for that card, from batches of 32,
with guidance if the model has it. The other stages are decoding in slices, the search for neurons, the search for
embeddings that bring images back, and encoding. Trainings are those of benchmarks/memory.py. `needed` adds what an
allocator cannot use and what CUDA takes. The rows `measured` compare the estimate with the peak that the CPU's
allocator counts, on the embedded model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from json import dumps
from pathlib import Path
from typing import Any

import torch
from experiment import ROOT
from jsonargparse import auto_cli
from memory import Row
from model_shapes import SHAPES, encoder
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ResNetConfig, ResNetModel

from memtrain.evaluation.sampling.fitting import READING, denoising_bytes, first_call, images_in
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.functional.memory import images_at_once
from memtrain.models.encoding import decode_latents
from memtrain.models.pipeline import load_pipeline
from memtrain.models.simulated_memory import peak_of, simulation, without_content
from memtrain.training.memory_estimate import DRIVER, MARGIN

CARD = 24 * 10**9
"""Bytes of a card of 24 GB."""
BATCH = Sampling().batch_size
SEARCHED, RETRIGGERED = 40, 4 * 8
"""Rows of a denoiser call while neurons are searched, and of a step of the search for embeddings."""
NETWORK_IMAGES = 32
TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Case:
    """A model at an image size in a type of numbers.

    Attributes:
        model: the name of a model in :data:`model_shapes.SHAPES`.
        pixels: side of the images.
        dtype: name of the type.
    """

    model: str
    pixels: int
    dtype: str

    @property
    def type(self) -> torch.dtype:
        """Return the bytes of all weights."""
        return TYPES[self.dtype]

    @property
    def halves(self) -> int:
        """Rows of an image in a denoiser call while it is sampled."""
        return 1 if self.model.startswith("flux") else 2

    @cached_property
    def parts(self) -> dict[str, nn.Module]:
        """Everything that has weights, on the meta device."""
        shape = SHAPES[self.model]
        with torch.device("meta"):
            made = {"denoiser": shape.make(), "vae": shape.vae()} | {name: encoder(name) for name in shape.encoders}
        return {name: nn.Module.to(part, self.type).eval() for name, part in made.items()}

    @property
    def standing(self) -> int:
        """Bytes of all weights."""
        return sum(self.sizes.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each part's weights."""
        return {
            name: sum(one.numel() * one.element_size() for one in (*part.parameters(), *part.buffers()))
            for name, part in self.parts.items()
        }

    def offloaded(self) -> dict[str, Any]:
        """`detect --offload`: the denoiser or the largest other part alone, whichever takes more."""
        fixed, each = self.denoising(self.halves)
        weights = self.sizes["denoiser"]
        images = min(BATCH, images_in(CARD - DRIVER - weights, (fixed, each), reading=READING))
        calls = weights + READING + fixed + images * each
        return {"batch": images, "weights": max(self.sizes.values()), "peak": max(calls, *self.sizes.values())}

    def denoising(self, halves: int, *, backward: bool = False) -> tuple[int, int]:
        """Return the bytes of a denoiser call."""
        with torch.device("meta"):
            call = SHAPES[self.model].call(halves, self.pixels, dtype=self.type)
        if backward:
            noisy, steps, text = call["args"]
            call = {"args": (noisy, steps), "encoder_hidden_states": text}
        return denoising_bytes(self.parts["denoiser"], call, halves=halves, backward=backward)

    def stages(self) -> Iterator[tuple[str, int, int]]:
        """Return a stage's work, its images at once, and the bytes of its fullest moment without the weights."""
        free = CARD - DRIVER - self.standing
        fixed, each = self.denoising(self.halves)
        read = min(BATCH, images_in(free, (fixed, each), reading=READING))
        yield "detect, attention: calls that are read", read, READING + fixed + read * each
        plain = min(BATCH, images_in(free, (fixed, each)))
        sliced = images_at_once(self.pixels, self.pixels, free=max(0, free), bytes_per_number=self.type.itemsize)
        decoding = simulated(self.parts["vae"], partial(self.decode, sliced))
        yield "measure, mitigate: denoising", plain, fixed + plain * each
        yield "measure, mitigate: decoding", sliced, decoding
        encoded = images_at_once(self.pixels, self.pixels)
        yield "measure: encoding, held-out loss", encoded, simulated(self.parts["vae"], partial(self.encode, encoded))
        if self.model == "sd15":
            # The search is at the model's own size.
            fixed, each = self.denoising(1)
            if self.pixels == 512:
                yield "localize, calibrate: search for neurons", SEARCHED, fixed + SEARCHED * each
            fixed, each = self.denoising(1, backward=True)
            rows = min(RETRIGGERED, images_in(free, (fixed, each)))
            yield "localize: search for embeddings", rows, fixed + rows * each

    def decode(self, images: int, vae: nn.Module) -> None:
        """Latents to images."""
        side = self.pixels // 8
        decode_latents(vae, torch.empty(images, SHAPES[self.model].channels, side, side, dtype=self.type))

    def encode(self, images: int, vae: Any) -> None:
        """Images to latents."""
        vae.encode(torch.empty(images, 3, self.pixels, self.pixels, dtype=self.type))


@torch.no_grad()
def simulated(module: nn.Module, run: Callable[[Any], None]) -> int:
    """Bytes that `run` takes at most with a module beyond its weights."""
    with simulation() as counter:
        copied = without_content(module, hooks=False).eval()
        return peak_of(counter, partial(run, copied))


def networks() -> Iterator[dict[str, Any]]:
    """Return the models of `metrics`, in fp32; no diffusion model is loaded."""
    with torch.device("meta"):
        sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, patch_size=14, projection_dim=768))
        resnet = ResNetModel(ResNetConfig())
    for name, network, side in (("CLIP ViT-L/14", clip, 224), ("SSCD's ResNet-50", resnet, 320)):
        weights = sum(4 * one.numel() for one in network.parameters())
        found = simulated(network, lambda copied, side=side: copied(torch.empty(NETWORK_IMAGES, 3, side, side)))
        yield row(model=name, pixels=side, dtype="float32", stage="metrics", batch=NETWORK_IMAGES, peak=weights + found)


def row(**figures: Any) -> dict[str, Any]:
    """Figures with what a card needs for their `peak`."""
    needed = int(figures["peak"] * (1 + MARGIN)) + DRIVER
    return {**figures, "needed": needed, "fits_24_gb": needed <= CARD}


def trainings() -> Iterator[dict[str, Any]]:
    """With the peak of benchmarks/memory.py."""
    rows = [Row("sd15", 512, rank=None), Row("sd15", 1024, rank=None)]
    rows += [Row(model, pixels) for model in SHAPES for pixels in (512, 1024)]
    rows += [Row("flux1_dev", 1024, bits=8), Row("flux1_dev", 1024, bits=4)]
    for one in rows:
        what = "train, all weights" if one.rank is None else "train, LoRA"
        base = "float32" if one.rank is None else "bfloat16" if one.bits == 16 else f"{one.bits} bits"
        yield row(model=one.model, pixels=one.pixels, dtype=base, stage=what, batch=1, peak=one.estimate().peak)


def measured() -> list[dict[str, Any]]:
    """The estimate and the CPU allocator's count, for the embedded model."""
    pipeline = load_pipeline(str(ROOT / "assets" / "tiny-sd"))
    pipeline.set_progress_bar_config(disable=True)
    images, unet, vae = 32, pipeline.unet.eval(), pipeline.vae.eval()
    call = first_call(pipeline, Sampling(), (64, 64))
    fixed, each = denoising_bytes(unet, call, halves=2)
    noisy, timestep = (value if value.dim() == 0 else value.repeat(images, 1, 1, 1) for value in call["args"])
    text = call["encoder_hidden_states"].repeat(images, 1, 1)
    latents = torch.zeros(images, vae.config.latent_channels, *noisy.shape[-2:])
    found = []
    with torch.no_grad():
        for what, estimate, run in (
            ("denoising", fixed + images * each, lambda: unet(noisy, timestep, encoder_hidden_states=text)),
            (
                "decoding",
                simulated(vae, lambda copied: decode_latents(copied, torch.empty(latents.shape))),
                lambda: decode_latents(vae, latents),
            ),
        ):
            run()
            counted = allocated(run)
            found.append({"what": what, "images": images, "estimate": estimate, "counted": counted})
    return [{**one, "ratio": one["estimate"] / one["counted"]} for one in found]


def allocated(run: Callable[[], Any]) -> int:
    """Bytes that the CPU's allocator gave out at most while `run` ran, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = peak = 0
    for event in sorted((one for one in events if one.name() == "[memory]"), key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def main(json: str | None = None) -> None:
    """Print the tables.

    Args:
        json: where to write the figures.
    """
    rows: list[dict[str, Any]] = []
    for model in SHAPES:
        for pixels in (512, 1024):
            for dtype in TYPES:
                case = Case(model, pixels, dtype)
                for stage, batch, beyond in case.stages():
                    about = {"model": model, "pixels": pixels, "dtype": dtype, "stage": stage, "batch": batch}
                    rows.append(row(**about, weights=case.standing, peak=case.standing + beyond))
                about = {"model": model, "pixels": pixels, "dtype": dtype, "stage": "detect, attention: --offload"}
                rows.append(row(**about, **case.offloaded()))
    rows += [*networks(), *trainings()]
    console = Console(width=130)
    table = Table(title="Memory of every stage on a card of 24 GB, estimated", title_justify="left")
    for head in ("model", "pixels", "type", "stage", "at once", "weights, GB", "peak, GB", "24 GB"):
        table.add_column(head, justify="right" if head in ("pixels", "at once") or "GB" in head else "left")
    for one in rows:
        table.add_row(*cells(one))
    console.print(table)
    checks = measured()
    for one in checks:
        print(
            f"The embedded model, {one['what']} {one['images']} images: {one['estimate'] / 1e6:.1f} MB estimated, "
            f"{one['counted'] / 1e6:.1f} MB counted by the allocator, ratio {one['ratio']:.2f}"
        )
    if json is not None:
        content = {"rows": rows, "measured": checks, "torch": torch.__version__}
        Path(json).write_text(dumps(content, indent=2) + "\n", encoding="utf-8")


def cells(one: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    weights = f"{one['weights'] / 1e9:.1f}" if "weights" in one else ""
    fits = "fits" if one["fits_24_gb"] else f"no, {one['needed'] / 1e9:.1f}"
    name = [str(one[key]) for key in ("model", "pixels", "dtype", "stage", "batch")]
    return [*name, weights, f"{one['peak'] / 1e9:.1f}", fits]


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
