r"""The papers' benchmark of memorized prompts, start to end: what it costs, a rehearsal, and the benchmark itself.

    python benchmarks/published_prompts.py --plan true
    python benchmarks/published_prompts.py --rehearse 6 --json benchmarks/published_prompts.json
    python benchmarks/published_prompts.py --model CompVis/stable-diffusion-v1-4 --prompts prompts.csv \
        --captions captions.txt --output runs/published

The command runs stages of `evaluate.py` in a row. It begins with one-step detection (Wen et al., ICLR 2024: 4 images a
prompt), and with threshold and activations on captions that are not memorized (50,000 in the paper). NeMo's search for
neurons with its published settings follows (configs/localize/published.yaml). Then 10 images of each prompt are sampled
without masks, under its own mask and under all masks, and the metrics of these folders are measured. Given again, the
command goes on: every stage keeps what is finished.

`--plan true` prints the cost without a model (benchmarks/published_cost.py has the formulas), in rows through the
denoiser, and in hours at stated rows a second. One A100 counts as 60 rows a second of Stable Diffusion at 512 px in
half precision, and as 30 in float32. `--rehearse N` runs everything for N prompts on a small random pipeline, counts
the rows by a hook on the denoiser, and fails where they are not those of the formulas.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import UNet2DConditionModel
from experiment import ROOT
from jsonargparse import auto_cli
from published_cost import PUBLISHED, Counts, Neurons, Published
from rich.console import Console
from rich.table import Table

from memtrain.cli.evaluation import evaluate
from memtrain.evaluation.stages.prompts import read_prompts
from memtrain.localization.results import Localization
from memtrain.models.pipeline import load_pipeline

GUIDANCE_NORM = '[{"class_path": "memtrain.detectors.guidance_norm.GuidanceNorm", "init_args": {"steps": 1}}]'
WORDS = ["red", "blue", "green", "circle", "square", "dog", "cat", "house", "tree", "star", "boat", "lamp"]


def stages(
    model: str, prompts: Path, captions: Path | None, output: Path, *, more: list[str], search: dict[str, Any]
) -> list[tuple[str, list[str]]]:
    """The commands, by name.

    Args:
        model: a pipeline folder or hub name.
        prompts: file of the prompts.
        captions: file of captions that are not memorized; None for NeMo's threshold, and activations for random words.
        output: folder of all results.
        more: options of every stage that runs the model.
        search: changes of the overlay with the published settings.
    """
    given: dict[str, Any] = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    if captions is not None:
        given["threshold"] = None
    overlay = {**given, **search, "settings": {**given["settings"], **search.get("settings", {})}}
    output.mkdir(parents=True, exist_ok=True)
    about = ["--model", model, *more, "--output", str(output)]
    commands: list[tuple[str, list[str]]] = []
    detection = [word for name, value in Published.read().detection.items() for word in (f"--{name}", str(value))]
    words = ["--prompts", str(prompts), *detection, "--detectors", GUIDANCE_NORM, "--null", "none"]
    commands.append(("detect", ["detect", *about, *words]))
    if captions is not None:
        shared = {name: overlay[name] for name in ("published", "settings")}
        (output / "calibrate.yaml").write_text(yaml.safe_dump(shared), encoding="utf-8")
        words = ["--config", str(output / "calibrate.yaml"), "--prompts", str(captions)]
        commands.append(("calibrate", ["calibrate", *words, *about]))
    (output / "localize.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    words = ["--config", str(output / "localize.yaml"), "--prompts", str(prompts), "--save_images", "true"]
    commands.append(("localize", ["localize", *words, *about]))
    return commands


def measured(prompts: Path, output: Path, networks: list[str]) -> list[str]:
    """The command for the metrics of the images that are there."""
    plain, masked = output / "images" / "original", output / "images" / "refined"
    folders = (
        ["--generated", str(masked), "--unblocked", str(plain)] if masked.is_dir() else ["--generated", str(plain)]
    )
    return ["metrics", *folders, "--prompts", str(prompts), "--output", str(output / "metrics"), *networks]


def work(prompts: Path, output: Path, commands: list[tuple[str, list[str]]], networks: list[str]) -> dict[str, int]:
    """Run every stage; rows that passed the denoiser, by stage."""
    rows: dict[str, int] = {}
    for name, words in commands:
        print(f"\npython evaluate.py {' '.join(words)}", flush=True)
        with counted() as seen:
            evaluate(words)
        rows[name] = seen[0]
    evaluate(measured(prompts, output, networks))
    return rows


@contextmanager
def counted() -> Iterator[list[int]]:
    """Rows of all forwards of U-Nets meanwhile, counted by a hook that nothing else knows of."""
    seen = [0]

    def count(module: Any, args: Any, output: Any) -> None:
        if isinstance(module, UNet2DConditionModel):
            seen[0] += len(output[0])

    # Not `with_kwargs=True`: torch 2.13 keeps that mark after `remove()`; compiled modules then warn of a hook.
    hook = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        yield seen
    finally:
        hook.remove()


def rehearsed(number: int, output: Path) -> list[dict[str, Any]]:
    """Everything for some prompts on a small random pipeline; rows planned and counted, by stage.

    The search goes mask by mask, as its formula counts, and takes every prompt for memorized.
    """
    torch.manual_seed(0)
    pipeline = load_pipeline(str(ROOT / "assets" / "tiny-sd"))
    pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config)
    pipeline.save_pretrained(output / "model")
    prompts, captions = output / "prompts.csv", output / "captions.csv"
    texts = [f"a {WORDS[row % 12]} {WORDS[(row // 12 + 5 * row + 1) % 12]} {row}" for row in range(number + 3)]
    for file, lines in ((prompts, texts[:number]), (captions, texts[number:])):
        with file.open("w", encoding="utf-8", newline="") as opened:
            csv.writer(opened).writerows([["prompt"], *([line] for line in lines)])
    search = {"threshold": -1.0, "settings": {"sequential": True}}
    commands = stages(str(output / "model"), prompts, captions, output, more=[], search=search)
    seen = work(prompts, output, commands, [])
    located = Localization.load(output / "neurons")
    return checked(seen, located, Counts(number, number, number, len(texts) - number))


def checked(seen: dict[str, int], located: Localization, counts: Counts) -> list[dict[str, Any]]:
    """Return the rows of the plan for the found neurons of every prompt, together with the counted rows."""
    published, found = Published.read(), located.found
    settings = published.settings
    assert settings.initial_theta is not None
    tried = [1 + round((settings.initial_theta - (one.theta or 0.0)) / settings.theta_step) for one in found]
    layers = [sum(map(bool, one.initial)) for one in found]
    calls = [one.images / settings.seeds for one in found]
    neurons = [call - 2 - try_ - layer for call, try_, layer in zip(calls, tried, layers, strict=True)]
    for one, refined in zip(found, neurons, strict=True):
        # Those of layers that went as a whole are not tried one by one.
        if not sum(map(len, one.refined)) <= refined <= sum(map(len, one.initial)):
            sys.exit(f"{one.prompt!r}: {refined} neurons tried of {sum(map(len, one.initial))}")
    count = len(found)
    mean = Neurons(sum(tried) / count, sum(layers) / count, sum(neurons) / count)
    masks = any(one.refined and any(one.refined) for one in found)
    plan = published.rows(replace(counts, conditions=counts.conditions if masks else 1), mean)
    planned = {"localize": sum(rows for name, rows in plan.items() if name.startswith("localize"))}
    planned |= {name: plan[name] for name in ("detect", "calibrate")}
    return [{"stage": name, "planned": round(planned[name]), "counted": rows} for name, rows in seen.items()]


def costs(counts: Counts, rate: float) -> list[dict[str, Any]]:
    """Rows and hours of every stage, and of the search that needs the prompts' own images."""
    published = Published.read()
    rows = published.rows(counts, Neurons())
    rows["all"] = sum(rows.values())
    rows["beside: search for embeddings"] = published.retriggered(counts)
    return [{"stage": name, "rows": round(value), "hours": value / rate / 3600} for name, value in rows.items()]


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for head in rows[0]:
        table.add_column(head, justify="left" if head == "stage" else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=120).print(table)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def main(
    model: str | None = None,
    prompts: str | None = None,
    captions: str | None = None,
    output: str = "runs/published",
    dtype: str = "auto",
    networks: list[str] | None = None,
    plan: bool = False,
    rehearse: int = 0,
    forwards_per_second: float = 60.0,
    json: str | None = None,
) -> None:
    """Plan, rehearse or run.

    Args:
        model: a pipeline folder or hub name.
        prompts: file of the prompts; 500 in the papers.
        captions: file of captions that the model does not memorize, for threshold and activations; 50,000 in the paper.
            Without it, the threshold is the paper's 0.428, and activations are those of random words.
        output: folder of the results.
        dtype: number format of the model, as in `evaluate.py`.
        networks: options of `memtrain metrics`, such as `[--clip, clip, --copy_detector, sscd.pt]`.
        plan: print what it costs, and do nothing.
        rehearse: run everything for as many prompts on a small random pipeline.
        forwards_per_second: rows that the denoiser does in a second.
        json: where to write the figures.
    """
    figures: dict[str, Any] = {}
    counts = Counts()
    if prompts is not None:
        number = len({one.text for one in read_prompts(prompts)})
        counts = Counts(number, number, number, 0 if captions is None else len(read_prompts(captions)))
    figures["plan"] = costs(counts, forwards_per_second)
    title = f"{counts.prompts} prompts, {counts.captions} captions: rows, and hours at {forwards_per_second:g} a second"
    show(figures["plan"], title)
    failed = False
    if rehearse:
        with tempfile.TemporaryDirectory(prefix="published-prompts-") as folder:
            figures["rehearsal"] = rehearsed(rehearse, Path(folder))
        show(figures["rehearsal"], f"Rehearsal of {rehearse} prompts: rows planned and counted")
        failed = any(row["planned"] != row["counted"] for row in figures["rehearsal"])
    elif not plan:
        if model is None or prompts is None:
            sys.exit("Name --model and --prompts, or ask for --plan or --rehearse 6")
        place = Path(output)
        given = stages(
            model, Path(prompts), Path(captions) if captions else None, place, more=["--dtype", dtype], search={}
        )
        figures["rows"] = work(Path(prompts), place, given, networks or [])
    if json is not None:
        Path(json).write_text(dumps(figures, indent=2) + "\n", encoding="utf-8")
    if failed:
        sys.exit("The rows that were counted are not those of the plan")


if __name__ == "__main__":
    # `--plan` alone means `--plan true`.
    given = sys.argv[1:]
    words = [
        f"{word}=true" if word == "--plan" and next_word[:2] in ("--", "") else word
        for word, next_word in zip(given, [*given[1:], ""], strict=True)
    ]
    auto_cli(main, as_positional=False, args=words)
