"""The cost of finding neurons: the fast search against the published one, prompt by prompt, in one process, in turn.

    python benchmarks/localization.py --run runs/tiny_baseline --json benchmarks/localization.json

Sequential as published is `Settings.published(dead_forwards=True)`: NeMo's code (Hintersdorf et al., NeurIPS 2024) with
the forwards that it runs for nothing. The fast search runs with the same settings, where it must find the same neurons,
and with the default settings. There are two models. One is the pipeline of a run that memorized, on its planted
captions (8 x 8 latents). The other is a small random UNet with 64 x 64 latents in which a few value neurons carry each
prompt. Only prompts that count as memorized are timed: the others cost two denoiser calls as published, and one here.
`speedup` is that of the default, by processor time, on the model where it is lower; `range` is the lowest and the
highest of single prompts. Same neurons: as published, for the splits as the greedy search with the same settings.
`went_back` counts the prompts for which a checked split saw a score that does not only grow, or had no room for its
margin, and followed the greedy search.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from json import dumps
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow.parquet as pq
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from memtrain.localization.fast import FastSearch
from memtrain.localization.found import Found
from memtrain.localization.predictor import Predictor
from memtrain.localization.published import PublishedSearch
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics
from memtrain.localization.threshold import calibrate_threshold

WAYS = {
    "as published": Settings.published(dead_forwards=True),
    "the same, fast": Settings.published(sequential=False),
    "default": Settings(),
    "checked split": Settings(refinement="checked_split"),
    "binary split": Settings(refinement="binary_split"),
}
GREEDY = {"checked split": "default", "binary split": "default"}
"""Whose neurons a split has to find; the other ways those of the published code."""
WIDTH, TOKENS, FOLLOWED = 24, 5, 4


def planted_predictor(size: int = 64, device: str = "cpu") -> Predictor:
    """A random UNet with Stable Diffusion's module names; 3 neurons per layer read the text of each prompt.

    Self-attention is left out, which would be most of the cost at this width and is a tenth of Stable Diffusion's.
    """
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=size,
        block_out_channels=(16, 16, 32, 32),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()
    unet.set_attn_processor(
        {name: Nothing() if ".attn1." in name else one for name, one in unet.attn_processors.items()}
    )
    predictor = Predictor(
        unet,
        lambda prompts: encode(prompts).to(device),
        _predict(unet),
        shape=(4, size, size),
        timesteps=(981.0, 961.0),
        name="random",
    )
    with torch.no_grad():
        for number, site in enumerate(predictor.sites().values()):
            site.to_q.register_forward_hook(_place(number))
            site.to_k.weight.mul_(8)
            for place, neuron in enumerate(torch.randperm(site.to_v.weight.shape[0])[:3].tolist()):
                site.to_v.weight[neuron].zero_()
                site.to_v.weight[neuron, (3 * number + place) % WIDTH] = 30.0 / (1 + place)
                site.to_out[0].weight[:, neuron] *= 30
        unet.conv_out.weight.mul_(300)
    unet.to(device)
    return predictor


class Nothing:
    """An attention processor that adds nothing."""

    def __call__(self, attention: nn.Module, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Zeros of the shape of the hidden states."""
        return torch.zeros_like(hidden)


def encode(prompts: Sequence[str]) -> Tensor:
    """Return small noise, and for a memorized prompt also some directions, which planted neurons read."""
    rows = []
    for prompt in prompts:
        generator = torch.Generator().manual_seed(crc32(prompt.encode()))
        text = 0.05 * torch.randn(TOKENS, WIDTH, generator=generator)
        if prompt.startswith("memorized"):
            chosen = torch.randperm(WIDTH, generator=generator)[:FOLLOWED]
            text[:, chosen] += torch.rand(TOKENS, FOLLOWED, generator=generator) + 0.3
        rows.append(text)
    return torch.stack(rows)


def _predict(unet: UNet2DConditionModel) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def predict(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        output: Tensor = unet(latents, timesteps, encoder_hidden_states=text).sample
        return output

    return predict


def _place(seed: int) -> Callable[..., Tensor]:
    """Queries get a fixed field, so that what a text adds has a place in the image."""
    fields: dict[int, Tensor] = {}

    def add(module: nn.Module, args: tuple[Tensor, ...], queries: Tensor) -> Tensor:
        side = math.isqrt(queries.shape[1])
        # Made once: a copy to a GPU in every call would be waited for.
        if side not in fields:
            drawn = torch.randn(1, queries.shape[2], 4, 4, generator=torch.Generator().manual_seed(seed))
            field = nn.functional.interpolate(drawn, (side, side), mode="bilinear").flatten(2).mT
            fields[side] = 3 * field.to(queries)
        return queries + fields[side]

    return add


def measure(
    predictor: Predictor,
    prompts: Sequence[str],
    others: Sequence[str],
    *,
    most: int,
    threshold: float | None,
    ways: dict[str, Settings] | None = None,
) -> dict[str, Any]:
    """Search up to `most` memorized prompts in every way, in turn; `ways` hold `as published` and `default`."""
    ways = ways or WAYS
    sites = predictor.sites()
    statistics = ActivationStatistics.measure(predictor, others)
    value = threshold or calibrate_threshold(predictor, others[:50]).value
    options: dict[str, Any] = {"statistics": statistics, "threshold": value}
    rows: dict[str, list[Found]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    with predictor.evaluating():
        for prompt in prompts:
            if len(rows["default"]) == most:
                break
            first = FastSearch(predictor, sites, ways["default"], **options).locate(prompt)
            if not first.memorized:
                continue
            for way, settings in ways.items():
                search = PublishedSearch if settings.sequential else FastSearch
                start = time.process_time()
                rows[way].append(search(predictor, sites, settings, **options).locate(prompt))
                processor[way].append(time.process_time() - start)
                print(f"{way}: {rows[way][-1].seconds:.1f} s, {rows[way][-1].images} images", flush=True)
    base, total = rows["as published"], len(rows["default"])
    figures: dict[str, Any] = {"prompts": total, "threshold": value, "latents": list(predictor.shape), "ways": {}}
    for way, found in rows.items():
        same = rows[GREEDY.get(way, "as published")]
        each = [first / own for first, own in zip(processor["as published"], processor[way], strict=True)]
        figures["ways"][way] = {
            "seconds_per_prompt": sum(one.seconds for one in found) / total,
            "processor_seconds_per_prompt": sum(processor[way]) / total,
            "calls_per_prompt": sum(one.calls for one in found) / total,
            "images_per_prompt": sum(one.images for one in found) / total,
            "kept_seeds": [one.kept_seeds for one in found],
            "initial_neurons": [sum(map(len, one.initial)) for one in found],
            "refined_neurons": [one.neurons for one in found],
            "below_threshold": [bool(one.score is not None and one.score < value) for one in found],
            "same_neurons": sum(_mask(one) == _mask(two) for one, two in zip(found, same, strict=True)),
            "speedup": sum(one.seconds for one in base) / sum(one.seconds for one in found),
            "speedup_processor": sum(processor["as published"]) / sum(processor[way]),
            "range": [min(each), max(each)],
            "went_back": sum(one.refinement == "greedy" for one in found) if "split" in way else 0,
            "times_fewer_images": sum(one.images for one in base) / sum(one.images for one in found),
        }
    return figures


def _mask(found: Found) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sorted(set(neurons))) for neurons in found.refined)


def _of_run(run: Path, *, most: int) -> dict[str, Any]:
    """The model of a run, on its planted captions."""
    samples = pq.read_table(run / "evaluation" / "samples.parquet", columns=["group", "caption"]).to_pylist()
    groups: dict[str, dict[str, None]] = {}
    for row in samples:
        groups.setdefault(row["group"], {})[row["caption"]] = None
    pipeline = StableDiffusionPipeline.from_pretrained(run / "pipeline", safety_checker=None)
    return measure(Predictor.of(pipeline), list(groups["planted"]), list(groups["heldout"]), most=most, threshold=None)


def main(
    run: str | None = "runs/tiny_baseline",
    prompts: int = 10,
    size: int = 64,
    threads: int = 1,
    json: str | None = None,
) -> None:
    """Measure and print.

    Args:
        run: folder of an evaluated run whose model memorized, with `pipeline/` and `evaluation/samples.parquet`; None
            for the random UNet alone.
        prompts: memorized prompts per model.
        size: the size of the random UNet's latents.
        threads: the number of threads of torch.
        json: file for the figures.
    """
    torch.set_num_threads(threads)
    start = time.perf_counter()
    models = {
        "random UNet": measure(
            planted_predictor(size),
            [f"memorized {number}" for number in range(40)],
            [f"other {number}" for number in range(60)],
            most=prompts,
            threshold=0.3,
        )
    }
    if run is not None:
        models["run"] = _of_run(Path(run), most=prompts)
    results = {
        "speedup": min(model["ways"]["default"]["speedup_processor"] for model in models.values()),
        "threads": threads,
        "seconds": time.perf_counter() - start,
        "models": models,
    }
    table = Table(
        "model",
        "way",
        "s / prompt",
        "calls",
        "images",
        "speed-up",
        "by processor time",
        "range",
        "fewer images",
        "same neurons",
    )
    for name, model in models.items():
        for way, one in model["ways"].items():
            table.add_row(
                f"{name}, {model['latents'][1]} x {model['latents'][2]}",
                way,
                f"{one['seconds_per_prompt']:.2f}",
                f"{one['calls_per_prompt']:.0f}",
                f"{one['images_per_prompt']:.0f}",
                f"{one['speedup']:.1f}",
                f"{one['speedup_processor']:.1f}",
                "{:.1f} to {:.1f}".format(*one["range"]),
                f"{one['times_fewer_images']:.1f}",
                f"{one['same_neurons']} of {model['prompts']}",
            )
    Console().print(table)
    if json:
        Path(json).write_text(dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
