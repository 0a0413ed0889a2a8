"""The cost of scoring a prompt: memtrain's detectors against keeping every attention map on the host.

    python benchmarks/detection.py --json benchmarks/detection.json
    python benchmarks/detection.py --shape sd15 --model assets/tiny-sd --steps 2 --repeats 1 --json sd15.json

The published form (Ren et al., ECCV 2024) has attention processors that write out the attention of every
cross-attention. They copy each probability map of both halves to the host in fp16 and keep it through all steps of a
sampling. The scores are computed from the maps afterwards, which is not timed here. Against it, on the same prompts and
noise, in turn in one process: the one-step detectors, which end the sampling after one denoiser call, and MemAttn's D,
which reads all steps.

"Kept" is what lies in memory for a prompt once it is sampled: the maps, or the detectors' readings before they become
one number. The weights and what a denoiser call needs while it runs are the same and left out. With fewer steps than
`full_steps` the published way's seconds and bytes per step are multiplied up, since all of its steps are alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from json import dumps
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from jsonargparse import auto_cli
from published_attention import PublishedProcessor
from rich.console import Console
from rich.table import Table
from transformers import CLIPTextConfig, CLIPTextModel

from memtrain.detectors.base import Detector
from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.memattn import MemAttn
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.models.pipeline import load_pipeline

PROMPTS = (
    "clip art of a red apple",
    "clip art of the flag of costa rica, in blue and red",
    "a house, in green, building",
)
WAYS: dict[str, tuple[Detector, ...]] = {
    "one step": (GuidanceNorm(), MemAttn("E")),
    "all steps": (MemAttn("D"),),
}
"""Ours, by the names of the table."""


def published(pipeline: Any, prompt: str, *, steps: int, guidance_scale: float) -> int:
    """Sample one image and keep every map; the bytes kept."""
    kept: list[np.ndarray] = []
    before = dict(pipeline.unet.attn_processors)
    published_way = PublishedProcessor(lambda maps: kept.append(maps.half().cpu().numpy()))
    processors = {name: published_way if ".attn2." in name else processor for name, processor in before.items()}
    pipeline.unet.set_attn_processor(processors)
    try:
        pipeline(
            prompt,
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="latent",
        )
    finally:
        pipeline.unet.set_attn_processor(before)
    return sum(maps.nbytes for maps in kept)


def ours(pipeline: Any, prompt: str, *, detectors: tuple[Detector, ...], steps: int, guidance_scale: float) -> int:
    """Score one prompt with one image; the bytes of the readings."""
    readings = read_prompts_with(
        pipeline,
        [prompt],
        detectors,
        sampling=Sampling(seeds=[0], steps=steps, guidance_scale=guidance_scale, batch_size=1, progress=False),
    )
    for detector in detectors:
        detector.score(readings[detector.name])
    return sum(values.nbytes for values in readings.values())


def timed(run: Callable[[], int]) -> tuple[float, int]:
    """Seconds, and what `run` returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    kept = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, kept


def load(model: str, shape: Literal["own", "sd15"]) -> Any:
    """The pipeline, with random parts of Stable Diffusion 1.5's shape if asked for."""
    pipeline: Any = load_pipeline(model)
    if shape == "sd15":
        torch.manual_seed(0)
        tokenizer = pipeline.tokenizer
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        pipeline.register_modules(unet=unet.eval(), text_encoder=CLIPTextModel(text).eval())
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main(
    model: str = "assets/tiny-sd",
    *,
    shape: Literal["own", "sd15"] = "own",
    steps: int = 50,
    full_steps: int = 50,
    guidance_scale: float = 7.5,
    repeats: int = 5,
    json: str | None = None,
) -> dict[str, Any]:
    """Time one prompt with one image, print a table, and write the figures.

    Args:
        model: a Stable Diffusion pipeline.
        shape: the shape of the model: the pipeline's own, or Stable Diffusion 1.5's with random weights.
        steps: sampling steps that are measured.
        full_steps: steps of a whole sampling.
        guidance_scale: the scale of classifier-free guidance.
        repeats: prompts timed each way, in turn; one more is not counted unless only one is asked for.
        json: file for the figures.

    Returns:
        The figures.
    """
    pipeline = load(model, shape)
    seconds: dict[str, list[float]] = {name: [] for name in ("published", *WAYS)}
    kept: dict[str, int] = {}
    longer = full_steps / steps
    for repeat in range(repeats + (repeats > 1)):
        prompt = PROMPTS[repeat % len(PROMPTS)]
        for name in seconds:
            run: Callable[..., int] = published if name == "published" else partial(ours, detectors=WAYS[name])
            spent, size = timed(partial(run, pipeline, prompt, steps=steps, guidance_scale=guidance_scale))
            scale = 1 if name == "one step" else longer
            kept[name] = round(size * scale)
            if repeat or repeats == 1:
                seconds[name].append(spent * scale)
    rows = {
        name: {
            "seconds": median(seconds[name]),
            "kept_bytes": kept[name],
            "times_faster": median(a / b for a, b in zip(seconds["published"], seconds[name], strict=True)),
            "times_less_kept": kept["published"] / kept[name],
            "detectors": [detector.name for detector in WAYS.get(name, ())],
        }
        for name in seconds
    }
    figures = {
        "model": model,
        "shape": shape,
        "measured_steps": steps,
        "steps": full_steps,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "device": str(pipeline.device),
        "rows": rows,
    }
    table = Table("way", "detectors", "s per prompt", "times faster", "kept per prompt", "times less")
    for name, row in rows.items():
        table.add_row(
            name,
            ", ".join(row["detectors"]) or "every map on the host",
            f"{row['seconds']:.2f}",
            f"{row['times_faster']:.1f}",
            f"{row['kept_bytes']:,} B",
            f"{row['times_less_kept']:,.0f}",
        )
    Console(width=120).print(table)
    if json:
        Path(json).write_text(dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
