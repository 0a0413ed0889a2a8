"""Measures of folders of images, prompt by prompt: the figures of the scripts of two papers, and their omissions.

Source: formulas in :mod:`memtrain.evaluation.stages.metrics.prompt_scores` and
:mod:`memtrain.evaluation.measures.copy_descriptors` (four conventions of SSCD). Prompts are split by the column `type`
of their file (NeMo's list has VM and TM). Without this column, NeMo's rule splits them, if originals and unmitigated
images exist: a prompt is verbatim if its best unmitigated generation has an SSCD above 0.7.
The stage writes `metrics.json`, and a row per prompt to `metrics.parquet` and `metrics.csv`.
Memory: the images of one prompt at a time, and the features of all.
Traps: like NeMo's script, this module leaves out prompts whose original cannot be read. The results give their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import torch
from torch import Tensor

import memtrain
from memtrain.errors import DataError
from memtrain.evaluation.measures.copy_descriptors import convention
from memtrain.evaluation.measures.nemo_metrics import VERBATIM
from memtrain.evaluation.measures.weights import Weights
from memtrain.evaluation.stages.metrics.distances import distances
from memtrain.evaluation.stages.metrics.layout import Pictures, read_pictures
from memtrain.evaluation.stages.metrics.networks import Networks, load_image, readable
from memtrain.evaluation.stages.metrics.prompt_scores import figures, pixel_scores, reduced, sscd_scores
from memtrain.evaluation.stages.parts import PARTS, Done, Parts
from memtrain.evaluation.stages.prompts import PromptToScore, prompts_read
from memtrain.evaluation.stages.provenance import provenance
from memtrain.evaluation.stages.results_file import write_results
from memtrain.evaluation.stages.shards import WHOLE, Shard
from memtrain.files.sheet_cells import safe_cells
from memtrain.records import write_parquet

SCHEMA_VERSION = 1
"""Version of `metrics.json`."""


def measure_folders(
    generated: str,
    prompts: str,
    *,
    output: Path,
    original: str | None = None,
    unblocked: str | None = None,
    real: str | None = None,
    weights: Weights | None = None,
    shard: Shard | None = WHOLE,
) -> dict[str, Any]:
    """Measure the images of prompts.

    Args:
        generated: the folder or mapping of generations.
        prompts: the file of prompts.
        output: the folder of the results.
        original: the folder or mapping of the original images.
        unblocked: the folder or mapping of the same prompts and seeds without the mitigation.
        real: the folder of real images; by default the originals.
        weights: the local files of networks.
        shard: the share of the prompts of this process; None to measure none, and merge the results of other processes.

    Returns:
        The content of `metrics.json`.

    Raises:
        DataError: if folders do not fit each other or the prompts.
        ConfigurationError: if a file of weights does not fit.
        UnfinishedParts: if other processes have not measured their share.
    """
    weights = weights or Weights()
    asked = _read(prompts)
    texts = {prompt.row: prompt.text for prompt in asked}
    made = read_pictures(generated, texts)
    plain = None if unblocked is None else read_pictures(unblocked, texts)
    own = None if original is None else read_pictures(original, texts, originals=True)
    asked = [prompt for prompt in asked if prompt.row in made.files]
    _require_same(made, plain, asked)
    networks, unreadable = Networks(weights), list[str]()
    parts = Parts(output / PARTS, _identity(asked, (made, plain, own), weights), shard=shard)
    rows, before, similar, spaces = _scores(asked, made, plain, own, networks, unreadable, parts)
    best = [row.pop("best_before", None) for row in rows]
    references = [int(row.pop("references")) for row in rows]
    kinds, split = _kinds(asked, best)
    quality = distances(spaces, real, networks, unreadable)
    output.mkdir(parents=True, exist_ok=True)
    table = _table(asked, kinds, made, references=references, rows=rows, before=before)
    write_parquet(table, output / "metrics.parquet")
    pyarrow.csv.write_csv(safe_cells(table), output / "metrics.csv")
    results = {
        "schema_version": SCHEMA_VERSION,
        **provenance(),
        "prompts": len(asked),
        "images": {
            **_counted(made, plain, own),
            "prompts_without_generation": len(texts) - len(asked),
            "prompts_without_original": references.count(0),
            "rows_without_original": [one.row for one, count in zip(asked, references, strict=True) if not count],
            "unreadable": unreadable,
        },
        "split": split,
        "figures": figures(rows, kinds),
        "without": figures(before, kinds),
        "quality": quality,
        "convention": {
            "name": weights.sscd_convention,
            "paper_weights": networks.by.weights,
            "figures": reduced(similar, weights.sscd_convention) if similar else {},
        },
        "networks": {
            "copy_detector": weights.sscd and Path(weights.sscd).name,
            "clip": networks.clip and networks.clip.name,
            "inception": weights.inception and Path(weights.inception).name,
        },
        "left_out": _left_out(weights, plain, own),
    }
    return parts.closed(write_results(results, output / "metrics.json"))


def _read(prompts: str) -> list[PromptToScore]:
    """Read the prompts of a file, and print which rows are left out."""
    read = prompts_read(prompts)
    if line := read.line():
        print(line)
    return list(read.prompts)


def _counted(made: Pictures, plain: Pictures | None, own: Pictures | None) -> dict[str, Any]:
    """Count the files of each kind."""
    sizes = [0 if one is None else sum(map(len, one.files.values())) for one in (made, plain, own)]
    return {"layout": made.layout, **dict(zip(("generated", "unblocked", "originals"), sizes, strict=True))}


def _table(
    asked: Sequence[PromptToScore],
    kinds: Sequence[str | None],
    made: Pictures,
    *,
    references: Sequence[int],
    rows: Sequence[Mapping[str, float]],
    before: Sequence[Mapping[str, float]],
) -> pa.Table:
    """Make a table with a row per prompt."""
    columns: dict[str, Any] = {
        "row": [prompt.row for prompt in asked],
        "prompt": [prompt.text for prompt in asked],
        "kind": pa.array(kinds, pa.string()),
        "generations": [len(made.of(prompt.row)) for prompt in asked],
        "references": pa.array(references, pa.int64()),
    }
    for scores, said in ((rows, ""), (before, ".unblocked")):
        for name in dict.fromkeys(name for row in scores for name in row):
            columns[f"{name}{said}"] = pa.array([row.get(name) for row in scores], pa.float64())
    return pa.table(columns)


def _scores(
    asked: Sequence[PromptToScore],
    made: Pictures,
    plain: Pictures | None,
    own: Pictures | None,
    networks: Networks,
    unreadable: list[str],
    parts: Parts,
) -> tuple[list[dict[str, float]], list[dict[str, float]], list[Tensor], dict[str, list[dict[str, Tensor]]]]:
    """Return scores of generations and of unmitigated images by prompt, similarities to originals, and features."""
    units = {f"row-{prompt.row:06d}": partial(_scored, prompt, made, plain, own, networks) for prompt in asked}
    parts.share(units, what="prompts")
    rows, before, similar = [], [], []
    spaces: dict[str, list[dict[str, Tensor]]] = {"generated": [], "unblocked": [], "originals": []}
    originals: list[Tensor | None] = []
    described: list[Tensor | None] = []
    for name in units:
        done = parts.read(name)
        rows.append(done.facts["row"])
        before.append(done.facts["earlier"])
        unreadable += done.facts["unreadable"]
        described.append(done.tensors.get("found"))
        originals.append(done.tensors.get("kept"))
        for space, seen in spaces.items():
            prefix = f"{space} "
            seen.append({key.removeprefix(prefix): one for key, one in done.tensors.items() if key.startswith(prefix)})
    every = [one for one in originals if one is not None]
    if networks.by is convention("nemo"):
        return rows, before, [], spaces
    if every and networks.by is convention("dcr"):
        similar = [found @ torch.cat(every).T for found in described if found is not None]
    elif every:
        pairs = zip(described, originals, strict=True)
        similar = [found @ kept.T for found, kept in pairs if found is not None and kept is not None]
    return rows, before, similar, spaces


def _scored(
    prompt: PromptToScore, made: Pictures, plain: Pictures | None, own: Pictures | None, networks: Networks
) -> Done:
    """Return the scores of one prompt's generations and unmitigated images, descriptors, and features."""
    unreadable: list[str] = []
    images = [load_image(file) for file in made.of(prompt.row)]
    same = None if plain is None else [load_image(file) for file in plain.of(prompt.row)]
    references = [] if own is None else readable(own.of(prompt.row), unreadable)
    found, unmitigated, kept = networks.copies(images), networks.copies(same or []), networks.copies(references)
    row: dict[str, float] = {"references": float(len(references))}
    if networks.sscd is not None and networks.by is convention("nemo"):
        assert found is not None  # there is a network, and a prompt without images is not asked
        row |= sscd_scores(found, unmitigated, kept)
    row |= pixel_scores(images, same, references)
    earlier: dict[str, float] = {}
    if same is not None:
        if unmitigated is not None and networks.by is convention("nemo"):
            earlier = sscd_scores(unmitigated, None, kept)
            if kept is not None:
                row["best_before"] = earlier["SSCD_orig"]
        earlier |= pixel_scores(same, None, references)
    if networks.clip is not None:
        text = networks.clip.texts([prompt.text])[0]
        for place, shown in ((row, images), (earlier, same)):
            if shown:
                each = torch.stack([networks.clip.images(image[None])[0] @ text for image in shown])
                place["A_CLIP"] = float(each.median())
    tensors = {name: one for name, one in (("found", found), ("kept", kept)) if one is not None}
    for space, shown in (("generated", images), ("unblocked", same), ("originals", references)):
        tensors |= {f"{space} {name}": one for name, one in networks.seen(shown or []).items()}
    return Done(tensors, {"row": row, "earlier": earlier, "unreadable": unreadable})


def _identity(asked: Sequence[PromptToScore], pictures: Sequence[Pictures | None], weights: Weights) -> dict[str, Any]:
    """Return everything that scores depend on; files count by their size and time."""

    def told(path: Path) -> list[Any]:
        about = path.stat() if path.exists() else None
        return [str(path), None if about is None else [about.st_size, about.st_mtime_ns]]

    files = [[] if one is None else [told(file) for prompt in asked for file in one.of(prompt.row)] for one in pictures]
    networks = [told(Path(path)) for path in (weights.sscd, weights.clip, weights.inception) if path is not None]
    return {
        "memtrain": memtrain.__version__,
        "prompts": [[prompt.row, prompt.text] for prompt in asked],
        "files": files,
        "weights": [weights.sscd_convention, *networks],
    }


def _kinds(asked: Sequence[PromptToScore], best: Sequence[float | None]) -> tuple[list[str | None], str]:
    """Return the kind of each prompt, and the rule that gave it."""
    if any(prompt.type for prompt in asked):
        return [prompt.type for prompt in asked], "the column `type` of the prompt file"
    if any(value is not None for value in best):
        names = [None if value is None else "verbatim" if value > VERBATIM else "template" for value in best]
        return list(names), f"NeMo's rule: verbatim is an SSCD of the best unmitigated generation above {VERBATIM}"
    return [None] * len(asked), ""


def _require_same(made: Pictures, plain: Pictures | None, asked: Sequence[PromptToScore]) -> None:
    """Refuse folders whose prompts and seeds differ, because generations of the same seed are compared."""
    for prompt in asked if plain is not None else ():
        assert plain is not None
        first, second = (sorted(one.files.get(prompt.row, {})) for one in (made, plain))
        if first != second:
            raise DataError(
                f"Prompt {prompt.row} has the seeds {first} with the mitigation and {second} without",
                expected="the same prompts and seeds in both folders",
                remedy="sample the missing images, or leave out --unblocked",
            )


def _left_out(weights: Weights, plain: Pictures | None, own: Pictures | None) -> dict[str, str]:
    """Return the reasons against figures that are not measured, by name."""
    found = {}
    if weights.sscd is None:
        found["SSCD"] = "no network was named with --copy_detector"
    elif weights.sscd_convention == "nemo":
        found |= {"SSCD_gen": "no --unblocked"} if plain is None else {}
        found |= {"SSCD_orig": "no --original"} if own is None else {}
    if weights.clip is None:
        found["A_CLIP, CLIP-FID"] = "no model was named with --clip"
    if weights.inception is None:
        found["FID, KID"] = "no network was named with --inception"
    return found
