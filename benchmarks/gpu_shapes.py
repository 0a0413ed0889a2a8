"""Shared code of the parts of `gpu.py`: environment, a random pipeline of Stable Diffusion 1.5's shape, and images."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from experiment import ROOT
from gpu_clock import peak_gib, synchronise
from model_shapes import SD15_UNET, SDXL_UNET
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from memtrain.models.pipeline import ddim

SMALL_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
}
WORDS = ("red", "blue", "green", "house", "tree", "bird", "boat", "cloud", "apple", "mountain")


@dataclass
class Part:
    """Where one part runs, and where its figures go.

    Attributes:
        file: JSON file of its figures, rewritten whenever some are added, so that a killed part keeps them.
        folder: the folder for what it and the other parts make.
        smoke: tiny sizes, on the CPU.
    """

    file: Path
    folder: Path
    smoke: bool
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where to run."""
        return torch.device("cpu" if self.smoke else "cuda")

    def add(self, **figures: Any) -> None:
        """Keep figures at once."""
        self.figures |= figures
        print(figures, flush=True)
        waiting = self.file.with_suffix(".writing")
        waiting.write_text(json.dumps(self.figures, indent=2), encoding="utf-8")
        os.replace(waiting, self.file)

    def attempt(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Keep what `measure` finds under a name, or the error with which it ends; the part goes on."""
        start = time.perf_counter()
        try:
            found = measure()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:1500]}
            print_traceback()
        finally:
            release(self.device)
        self.add(**{name: {**found, "seconds_in_all": time.perf_counter() - start}})

    def failures(self) -> list[str]:
        """Names and errors of the attempts that failed."""
        found = self.figures.items()
        return [f"{name}: {one['error']}" for name, one in found if isinstance(one, dict) and "error" in one]

    def autocast(self, dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
        """Mixed precision, as configs/sd15.yaml has it."""
        return torch.autocast(self.device.type, dtype)

    def timed(self, run: Callable[[], Any]) -> float:
        """Seconds of `run`, with the device done before and after."""
        synchronise(self.device)
        start = time.perf_counter()
        run()
        synchronise(self.device)
        return time.perf_counter() - start

    def peak_of(self, run: Callable[[], Any]) -> float | None:
        """GiB of the device that `run` takes at most; None on a CPU."""
        if self.device.type == "cuda":
            synchronise(self.device)
            torch.cuda.reset_peak_memory_stats()
        run()
        synchronise(self.device)
        return peak_gib(self.device)


def print_traceback() -> None:
    """Into the part's log."""
    import traceback

    traceback.print_exc()


def release(device: torch.device) -> None:
    """Give memory back between measurements."""
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def random_pipeline(part: Part) -> Path:
    """A pipeline folder of Stable Diffusion 1.5's shape with random weights (tiny in a smoke run), made once."""
    place = part.folder / ("small" if part.smoke else "sd15")
    if place.is_dir():
        return place
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "assets" / "tiny-sd", subfolder="tokenizer")
    width, layers, heads = (16, 1, 2) if part.smoke else (768, 12, 12)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer) if part.smoke else 49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    widths = (16, 16, 16, 16) if part.smoke else (128, 256, 512, 512)
    torch.manual_seed(0)
    with part.device:
        unet = UNet2DConditionModel(**(SMALL_UNET if part.smoke else SD15_UNET))
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=widths,
            layers_per_block=1 if part.smoke else 2,
            norm_num_groups=4 if part.smoke else 32,
            sample_size=64 if part.smoke else 512,
        )
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    pipeline = StableDiffusionPipeline(
        vae=vae.cpu(),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet.cpu(),
        scheduler=ddim(scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    half = place.with_name(place.name + ".writing")
    shutil.rmtree(half, ignore_errors=True)
    pipeline.save_pretrained(half)
    half.rename(place)
    return place


SMALL_XL: dict[str, Any] = {
    **SMALL_UNET,
    "cross_attention_dim": 32,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 16,
}


def random_xl_pipeline(part: Part) -> Path:
    """A pipeline folder of Stable Diffusion XL's shape with random weights (tiny in a smoke run), made once."""
    place = part.folder / ("small_xl" if part.smoke else "sdxl")
    if place.is_dir():
        return place
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "assets" / "tiny-sd", subfolder="tokenizer")
    tokens = {
        "vocab_size": len(tokenizer) if part.smoke else 49408,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    first, second = ((16, 1, 2), (16, 1, 2)) if part.smoke else ((768, 12, 12), (1280, 32, 20))
    texts = [
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
            **tokens,
        )
        for width, layers, heads in (first, second)
    ]
    torch.manual_seed(0)
    with part.device:
        unet = UNet2DConditionModel(**(SMALL_XL if part.smoke else SDXL_UNET))
        text_encoder, text_encoder_2 = CLIPTextModel(texts[0]), CLIPTextModelWithProjection(texts[1])
    source = random_pipeline(part)
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(source, subfolder="vae"),
        text_encoder=text_encoder.cpu(),
        text_encoder_2=text_encoder_2.cpu(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet.cpu(),
        scheduler=DDPMScheduler.from_pretrained(source, subfolder="scheduler"),
        add_watermarker=False,
    )
    half = place.with_name(place.name + ".writing")
    shutil.rmtree(half, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(half)
    half.rename(place)
    return place


def random_images(part: Part) -> Path:
    """A folder of 160 captioned images (36 small ones in a smoke run), made once."""
    count, size = (36, 64) if part.smoke else (160, 512)
    place = part.folder / f"images{size}"
    if (place / "metadata.jsonl").is_file():
        return place
    place.mkdir(parents=True, exist_ok=True)
    generator, lines = torch.Generator().manual_seed(0), []
    for number in range(count):
        coarse = torch.randint(255, (16, 16, 3), generator=generator, dtype=torch.uint8)
        name = f"{number:03}.png"
        Image.fromarray(coarse.numpy()).resize((size, size), Image.Resampling.BICUBIC).save(place / name)
        caption = f"{WORDS[number % 10]} and {WORDS[number // 10 % 10]} {number // 100}"
        lines.append(json.dumps({"file_name": name, "text": caption}))
    (place / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place
