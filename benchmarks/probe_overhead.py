"""The cost of monitoring: monitored over unmonitored training steps, in one process, in turn.

    python benchmarks/probe_overhead.py --json benchmarks/probe_overhead.json --figure docs/probe_overhead.png

A watched step arms the probe, reads every default site, computes the default signals, passes the gradient gate and
starts the copy of one small tensor to the host. The published form is measured too. It has attention processors that
build every probability map and copy it to the host (Ren et al., ECCV 2024, section 4). On a machine with a GPU the
shapes of SD 1.5 and SDXL are measured too, with random weights in bf16.
"""

from __future__ import annotations

import gc
import statistics
import time
from json import dumps
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from experiment import ROOT, median_interval
from jsonargparse import auto_cli
from model_shapes import SD15_UNET, SDXL_UNET
from published_attention import PublishedProcessor
from rich.console import Console
from rich.table import Table
from torch import Tensor

from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.models.transfer import HostCopy
from memtrain.monitoring.visits import Visits
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.denoising_loss import DenoisingLoss

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WAYS = ("plain", "watched", "published")


class Bench:
    """Training steps of one denoiser.

    Args:
        shape: `tiny_sd`, `sd15` or `sdxl`.
        batch: samples per step.
        latents: height and width of the latents.
        device: where to run.
        sites: number of attention sites to read; default the backbone's subset.
        checkpointing: whether gradients are checkpointed.
    """

    def __init__(
        self,
        shape: str,
        *,
        batch: int,
        latents: int,
        device: str,
        sites: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        torch.manual_seed(0)
        if shape == "tiny_sd":
            unet = UNet2DConditionModel.from_pretrained(ROOT / "assets" / "tiny-sd", subfolder="unet")
        else:
            options = SD15_UNET if shape == "sd15" else SDXL_UNET
            unet = UNet2DConditionModel(**options)
        self.unet = unet.to(device).to(memory_format=torch.channels_last).train()
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.device, self.batch = torch.device(device), batch
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=1e-6)
        config = self.unet.config
        self.noisy = torch.randn(batch, config.in_channels, latents, latents, device=device)
        self.noisy = self.noisy.contiguous(memory_format=torch.channels_last)
        self.text = torch.randn(batch, 77, config.cross_attention_dim, device=device)
        self.timesteps = torch.randint(1000, (batch,), device=device)
        self.lengths = torch.randint(8, 20, (batch,), device=device)
        self.extra: dict[str, Any] = {}
        if shape == "sdxl":
            added = {
                "text_embeds": torch.randn(batch, 1280, device=device),
                "time_ids": torch.randn(batch, 6, device=device),
            }
            self.extra = {"added_cond_kwargs": added}
        self.probe = DenoiserProbe(self.unet, sites=None if sites is None else "*")
        if sites is not None:
            self.probe.sites = dict(list(self.probe.sites.items())[-sites:])
        self.signals = (DenoisingLoss(), AttentionEntropy())
        self.weights = torch.ones(batch, device=device)
        self.copies: list[HostCopy] = []
        self.maps: list[Tensor] = []

    def step(self, way: str) -> float:
        """Run one training step in a way of `WAYS`, or `probe` (watched without signals); return seconds."""
        processors = self.unet.attn_processors
        if way in ("watched", "probe"):
            self.probe.attach()
        elif way == "published":
            published_way = PublishedProcessor(lambda maps: self.maps.append(maps.cpu()))
            chosen = {name: published_way if "attn2" in name else old for name, old in processors.items()}
            self.unet.set_attn_processor(chosen)
        self._synchronise()
        start = time.perf_counter()
        if way in ("watched", "probe"):
            observation = Observation([str(index) for index in range(self.batch)], self.lengths)
            self.probe.begin(observation, lambda seen: self.weights)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            prediction = self.unet(self.noisy, self.timesteps, self.text, **self.extra).sample
        F.mse_loss(prediction.float(), self.noisy).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if way in ("watched", "probe"):
            observation = self.probe.end()
        if way == "watched":
            values = torch.cat([signal(observation) for signal in self.signals], dim=1)
            self.copies.append(Visits.pack(observation, self.weights, values))
        self._synchronise()
        seconds = time.perf_counter() - start
        self.copies.clear()
        self.maps.clear()
        self.probe.detach()
        if way == "published":
            self.unet.set_attn_processor(processors)
        return seconds

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def compare(self, pairs: int, ways: tuple[str, ...] = WAYS) -> dict[str, Any]:
        """Seconds per step, and the ratio of each way to `plain` step by step, with an interval for its median."""
        for _ in range(2):
            for way in ways:
                self.step(way)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(pairs):
            # Each way goes first in turn, so that drift of the machine's clock favours none.
            for offset in range(len(ways)):
                way = ways[(turn + offset) % len(ways)]
                seconds[way].append(self.step(way))
        ratios = {
            way: [a / b for a, b in zip(seconds[way], seconds["plain"], strict=True)] for way in ways if way != "plain"
        }
        found: dict[str, Any] = {"pairs": pairs, "seconds_plain": statistics.median(seconds["plain"])}
        for way, values in ratios.items():
            prefix = "" if way == "watched" else f"{way}_"
            found[f"{prefix}ratio_median"] = statistics.median(values)
            found[f"{prefix}ratio_interval_95"] = median_interval(values)
        return found


def _peak(way: str, arguments: dict[str, Any]) -> float:
    bench = Bench(**arguments)
    if bench.device.type == "cuda":
        bench.step(way)
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        bench.step(way)
    if bench.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(status["VmHWM"].split()[0]) / 2**10


def peak_memory(arguments: dict[str, Any]) -> dict[str, float]:
    """Peak memory of each way in a process of its own, MiB: of the device, or resident on a CPU."""
    context = get_context("spawn")
    found = {}
    for way in WAYS:
        with context.Pool(1) as pool:
            found[f"peak_mib_{way}"] = pool.apply(_peak, (way, arguments))
    found["peak_memory_ratio"] = found["peak_mib_watched"] / found["peak_mib_plain"]
    return found


def growth(device: str, pairs: int) -> list[dict[str, Any]]:
    """Overhead against batch size, resolution and number of sites."""
    shape, base = ("sd15", 8) if device == "cuda" else ("tiny_sd", 16)
    size, sizes = (64, (32, 64, 96)) if device == "cuda" else (8, (8, 16, 24))
    rows: list[dict[str, Any]] = []

    def measure(axis: str, value: int, **arguments: Any) -> None:
        bench = Bench(shape, device=device, **{"batch": base, "latents": size, **arguments})
        rows.append({"axis": axis, "value": value, **bench.compare(pairs, ("plain", "watched"))})
        del bench
        gc.collect()

    for batch in (base // 4, base // 2, base, 2 * base):
        measure("batch", batch, batch=batch)
    for latents in sizes:
        measure("latents", latents, latents=latents)
    for sites in (1, 4, 8, 16):
        measure("sites", sites, sites=sites)
    return rows


def draw(rows: list[dict[str, Any]], picture: Path, title: str) -> None:
    """One panel per axis: overhead in percent with its interval."""
    names = {"batch": "batch size", "latents": "latents (height = width)", "sites": "attention sites read"}
    figure, panels = plt.subplots(1, 3, figsize=(10, 3), sharey=True, layout="constrained")
    for panel, (axis, name) in zip(panels, names.items(), strict=True):
        chosen = [row for row in rows if row["axis"] == axis]
        middle = [100 * (row["ratio_median"] - 1) for row in chosen]
        low = [m - 100 * (row["ratio_interval_95"][0] - 1) for m, row in zip(middle, chosen, strict=True)]
        high = [100 * (row["ratio_interval_95"][1] - 1) - m for m, row in zip(middle, chosen, strict=True)]
        panel.errorbar([row["value"] for row in chosen], middle, [low, high], fmt="o-", capsize=3)
        panel.set_xticks([row["value"] for row in chosen])
        panel.set_xlabel(name)
        panel.axhline(0, color="0.7", linewidth=0.8)
    panels[0].set_ylabel("added time per step, %")
    figure.suptitle(title)
    figure.savefig(picture, dpi=110)


def cases(device: str) -> dict[str, dict[str, Any]]:
    """Name and arguments of what is measured on this machine."""
    found: dict[str, dict[str, Any]] = {
        "tiny_sd": {"shape": "tiny_sd", "batch": 16, "latents": 8, "device": "cpu"},
    }
    if device == "cuda":
        for shape in ("sd15", "sdxl"):
            for checkpointing in (False, True):
                name = f"{shape}_checkpointing" if checkpointing else shape
                arguments = {"shape": shape, "batch": 8, "latents": 64, "device": "cuda"}
                found[name] = {**arguments, "checkpointing": checkpointing}
    return found


def main(
    json: str | None = None,
    pairs: int = 60,
    figure: str | None = None,
    growth_pairs: int = 20,
) -> None:
    """Measure, print a table, and write the figures.

    Args:
        json: also write the figures there.
        pairs: repetitions of each way.
        figure: picture of how the overhead grows.
        growth_pairs: repetitions per point of that picture.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {
        "environment": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        }
    }
    table = Table("case", "plain step, s", "watched / plain", "peak memory", "as published / plain")
    for name, arguments in cases(device).items():
        bench = Bench(**arguments)
        row = bench.compare(pairs)
        del bench
        gc.collect()
        row |= peak_memory(arguments)
        results[name] = row
        interval, published = row["ratio_interval_95"], row["published_ratio_interval_95"]
        table.add_row(
            name,
            f"{row['seconds_plain']:.3f}",
            f"{row['ratio_median']:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]",
            f"{row['peak_memory_ratio']:.3f}",
            f"{row['published_ratio_median']:.3f} [{published[0]:.3f}, {published[1]:.3f}]",
        )
    if device == "cpu":
        for name in ("sd15", "sd15_checkpointing", "sdxl", "sdxl_checkpointing"):
            table.add_row(name, "not measured: no GPU", "", "", "")
    Console(width=110).print(table)
    if figure:
        results["growth"] = growth(device, growth_pairs)
        draw(results["growth"], Path(figure), f"What watching adds to a training step ({device})")
    if json:
        Path(json).write_text(dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
