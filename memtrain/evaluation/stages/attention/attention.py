"""Pictures of the attention to text while prompts are sampled, after figures 2 to 4 of MemAttn (Ren et al., ECCV 2024).

For each prompt they show the attention that each token receives at each step. Over all prompts they show the entropy at
each step, of memorized prompts against others, for all tokens and for EOS and padding alone. In the published work, the
attention of memorized prompts stays spread, so their entropy is higher.
The stage writes to `attention/`: `entropy.png`, `prompt-0000.png` ... for some prompts, `attention.parquet` with the
entropies of each prompt and step, and `attention.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from diffusers import DiffusionPipeline
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from memtrain.evaluation.report.figure_text import figure_text
from memtrain.evaluation.sampling.denoiser_calls import prompt_lengths
from memtrain.evaluation.sampling.generate import sampled_size
from memtrain.evaluation.sampling.stored_samples import identity_of
from memtrain.evaluation.stages.attention.arrays import array_folder, array_writer
from memtrain.evaluation.stages.attention.trace import AttentionTrace, trace_attention
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.parts import PARTS, Parts
from memtrain.evaluation.stages.prompts import MEMORIZED, OTHER, UNKNOWN, PromptToScore, group_names
from memtrain.evaluation.stages.provenance import provenance
from memtrain.evaluation.stages.results_file import write_results
from memtrain.evaluation.stages.shards import WHOLE, Shard
from memtrain.files.whole import written_whole
from memtrain.functional.ranking import mean_with_interval
from memtrain.models.stock_pipeline import text_tokenizer
from memtrain.records import write_parquet

FOLDER = "attention"
SCHEMA_VERSION = 1
"""Version of `attention.json` and `attention.parquet`."""
COLOURS = {MEMORIZED: "#c2410c", OTHER: "#0f766e", UNKNOWN: "#475569"}
LEAST = 1e-3
"""Smallest share of the attention that is drawn as more than none."""
BAND = (0.1, 0.9)
"""Quantiles over the prompts of a group that bound the band of a curve."""


def attention_plots(
    given: StageInput, *, most: int = 4, save_arrays: bool = False, shard: Shard | None = WHOLE
) -> dict[str, Any]:
    """Sample prompts, draw their attention, and write the pictures.

    Args:
        given: the pipeline (Stable Diffusion 1.x, 2.x or XL), P prompts, the settings of the sampling, and the output
            folder, which gets a folder `attention/`.
        most: the number of prompts with their own picture, memorized prompts and others in turn.
        save_arrays: whether to write the attention of every token at every step and site as well
            (:mod:`memtrain.evaluation.stages.attention.arrays`).
        shard: the share of the prompts of this process, if several share an output folder. None to sample none, and
            merge the results of other processes.

    Returns:
        The content of `attention/attention.json`.

    Raises:
        ConfigurationError: if the pipeline's tokens are not laid out as `BOS words EOS padding`.
        UnfinishedParts: if this share is sampled, and that of another process is not.
    """
    texts = [prompt.text for prompt in given.prompts]
    folder = given.output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    keep, seeds = None, given.sampling.seeds
    if save_arrays:
        keep = array_writer(folder, seeds, prompt_lengths(given.pipeline, texts).tolist())
    own = [prompt.seed for prompt in given.prompts]
    parts = Parts(given.output / PARTS, _identity(given, save_arrays=save_arrays), shard=shard)
    trace = trace_attention(given.pipeline, texts, sampling=given.sampling, seeds=own, keep=keep, parts=parts)
    for earlier in folder.glob("prompt-*.png"):
        earlier.unlink()
    memorized = [prompt.memorized for prompt in given.prompts]
    write_parquet(_table(given.prompts, trace), folder / "attention.parquet")
    pictures = ["entropy.png"]
    draw_entropy(folder / pictures[0], trace, memorized)
    for row in _in_turn(memorized)[:most]:
        pictures.append(f"prompt-{row:04d}.png")
        words = token_texts(given.pipeline, texts[row], length=int(trace.lengths[row]))
        draw_tokens(folder / pictures[-1], trace.attention[row], words, title=texts[row])
    results = {
        "schema_version": SCHEMA_VERSION,
        **provenance(given.pipeline),
        "model": given.model,
        "sampling": given.sampling.said(),
        "prompts": len(texts),
        "entropy": _entropies(trace, memorized),
        "pictures": pictures,
        "arrays": [array_folder(folder, seed).name for seed in seeds] if save_arrays else [],
        "own_seeds": sum(seed is not None for seed in own),
    }
    return parts.closed(write_results(results, folder / "attention.json"))


def _identity(given: StageInput, *, save_arrays: bool) -> dict[str, Any]:
    """Return everything that the readings depend on, and whether arrays are written."""
    texts, size = [prompt.text for prompt in given.prompts], sampled_size(given.pipeline, given.sampling)
    return {
        **identity_of(given.pipeline, texts, given.sampling, (), size=size),
        "seeds": [prompt.seed for prompt in given.prompts],
        "arrays": save_arrays,
    }


def _entropies(trace: AttentionTrace, memorized: Sequence[bool | None]) -> dict[str, Any]:
    """Return the mean entropy of each group of prompts, over all sampling steps, with an interval over prompts."""
    groups = group_names(memorized)
    found: dict[str, Any] = {}
    for name in dict.fromkeys(groups):
        inside = torch.tensor([group == name for group in groups])
        found[name] = {
            "prompts": int(inside.sum()),
            "all_tokens": mean_with_interval(trace.entropy[inside].mean(dim=1)),
            "eos_and_padding": mean_with_interval(trace.summary_entropy[inside].mean(dim=1)),
        }
    return found


def token_texts(pipeline: DiffusionPipeline, prompt: str, *, length: int) -> list[str]:
    """Return the first `length` tokens of a prompt as text: BOS, its words or parts of words, EOS."""
    tokenizer, _ = text_tokenizer(pipeline)
    ids = tokenizer([prompt], truncation=True, max_length=tokenizer.model_max_length)["input_ids"][0]
    words = [token.replace("</w>", "") for token in tokenizer.convert_ids_to_tokens(ids)]
    return ["BOS", *words[1 : length - 1], "EOS"]


def draw_tokens(path: Path, attention: Tensor, words: Sequence[str], *, title: str) -> None:
    """Draw the attention that each token receives at each step.

    Args:
        path: the PNG file to write.
        attention: the attention, `(S, T)`.
        words: the texts of the first tokens; the other tokens are drawn as one row, padding.
        title: the prompt.
    """
    count, steps = len(words), len(attention)
    rows = [*attention[:, :count].T]
    labels = [figure_text(word, 16) for word in words]
    if count < attention.shape[1]:
        rows.append(attention[:, count:].sum(dim=1))
        labels.append(f"padding ({attention.shape[1] - count})")
    figure = Figure(figsize=(6.4, 1.1 + 0.2 * len(rows)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = torch.stack(rows).clamp(min=LEAST).numpy()
    extent = (0.5, steps + 0.5, len(rows) - 0.5, -0.5)
    image = axes.imshow(
        shares, aspect="auto", norm=LogNorm(LEAST, 1), cmap="magma", interpolation="nearest", extent=extent
    )
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.set_xlabel("sampling step", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title(figure_text(title, 90), fontsize=8, loc="left")
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("share of the attention", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    # Without the default Software entry the bytes do not depend on matplotlib's version string.
    with written_whole(path, durable=False) as unfinished:
        figure.savefig(unfinished, format="png", metadata={"Software": None})


def draw_entropy(path: Path, trace: AttentionTrace, memorized: Sequence[bool | None]) -> None:
    """Draw the entropy over steps: the mean of each group of prompts, with a band.

    Args:
        path: the PNG file to write.
        trace: the attention of P prompts.
        memorized: the known truth of the P prompts.
    """
    groups = group_names(memorized)
    figure = Figure(figsize=(8, 3.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = {"all tokens": trace.entropy, "EOS and padding": trace.summary_entropy}
    for axes, (title, values) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        steps = range(1, values.shape[1] + 1)
        for name in dict.fromkeys(groups):
            chosen = values[torch.tensor([group == name for group in groups])]
            low, high = torch.quantile(chosen, torch.tensor(BAND), dim=0)
            label = f"{name} ({len(chosen)})" if name != UNKNOWN else f"prompts ({len(chosen)})"
            axes.plot(steps, chosen.mean(dim=0).numpy(), color=COLOURS[name], label=label, linewidth=1.6)
            axes.fill_between(steps, low.numpy(), high.numpy(), color=COLOURS[name], alpha=0.18, linewidth=0)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("sampling step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("entropy of the attention, nats", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    with written_whole(path, durable=False) as unfinished:
        figure.savefig(unfinished, format="png", metadata={"Software": None})


def _in_turn(memorized: Sequence[bool | None]) -> list[int]:
    """Order prompts: one known to be memorized and one other in turn, as long as there are both."""
    known = [row for row, truth in enumerate(memorized) if truth]
    rest = [row for row, truth in enumerate(memorized) if not truth]
    pairs = [row for pair in zip(known, rest, strict=False) for row in pair]
    return [*pairs, *known[len(rest) :], *rest[len(known) :]]


def _table(prompts: Sequence[PromptToScore], trace: AttentionTrace) -> pa.Table:
    """Make a table with a row per prompt and step."""
    steps = trace.entropy.shape[1]
    each = [prompt for prompt in prompts for _ in range(steps)]
    return pa.table(
        {
            "prompt": [prompt.text for prompt in each],
            "memorized": pa.array([prompt.memorized for prompt in each], pa.bool_()),
            "type": pa.array([prompt.type for prompt in each], pa.string()),
            "step": list(range(steps)) * len(prompts),
            "entropy": trace.entropy.flatten().numpy(),
            "summary_entropy": trace.summary_entropy.flatten().numpy(),
        }
    )
