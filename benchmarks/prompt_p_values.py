"""Are the p-values of prompts valid on captions that a model has not seen, and small on captions that it memorized?

    python benchmarks/copies.py ...   # leaves runs whose truth is known; or name other finished runs of such data
    python benchmarks/prompt_p_values.py --runs "[runs/copies/exact-baseline-0]" --json benchmarks/prompt_p_values.json

One case is the embedded model with held-out emoji captions and with clip-art captions, on neither of which it was
trained. The other cases are runs, with the captions of their held-out pictures (unseen), of unique training pictures
(seen) and of planted pictures (memorized). Null prompts are made as in `memtrain detect`, from all captions of the
case. For runs, they are also made from the unseen captions alone, like a file of your own, and from each caption alone,
like a command with one prompt. All detectors read one sampling.

The table has three figures for each kind of null and detector. The first is the share of unseen captions with p <= 0.05
and its interval (valid: 0.05 lies in it or above it). The others are the share above the middle of the null (valid: a
half), and the number of captions named at q < 0.05.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping, Sequence
from json import dumps, loads
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from memtrain.cli.chatter import quiet
from memtrain.cli.run_folder import run_data
from memtrain.data.source import open_source
from memtrain.detectors.anisotropy import Anisotropy
from memtrain.detectors.denoising_confidence import DenoisingConfidence
from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.memattn import MemAttn
from memtrain.detectors.noise_similarity import NoiseSimilarity
from memtrain.evaluation.sampling.denoiser_calls import prompt_lengths
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.detect.p_values import LEVEL, benjamini_hochberg, combined_p_values, holm, p_values
from memtrain.evaluation.stages.null_prompts import null_prompts
from memtrain.functional.ranking import proportion_interval
from memtrain.models.pipeline import load_pipeline

DETECTORS = [GuidanceNorm(), MemAttn("E"), NoiseSimilarity(), DenoisingConfidence(), Anisotropy()]
"""Those of which each reads the first call of the denoiser."""
UNSEEN, SEEN, MEMORIZED = "unseen", "seen", "memorized"
EMBEDDED = "assets/tiny-sd"


def captions_of(path: str) -> list[str]:
    """Different captions of a shard."""
    return list(dict.fromkeys(sample.caption for sample in open_source(path).samples))


def case_of_run(folder: Path, *, most: int, seen: int) -> dict[str, list[str]]:
    """Captions by what the model of a run knows of them; no caption is in two groups."""
    config, data = run_data(folder)
    path = config["data"]["init_args"]["path"]
    truth = loads(Path(path).with_name("truth.json").read_text(encoding="utf-8"))
    caption = {sample.key: sample.caption for sample in open_source(path).samples}
    planted = [caption[files[0]] for files in truth["planted"].values()]
    unseen = [sample.caption for sample in data.heldout_dataset.samples][:most]
    once = [caption[key] for key in truth["unique"] if key in caption and key in data.visits_per_epoch][:seen]
    groups: dict[str, list[str]] = {}
    for name, texts in ((MEMORIZED, planted), (UNSEEN, unseen), (SEEN, once)):
        known = {text for group in groups.values() for text in group}
        groups[name] = [text for text in dict.fromkeys(texts) if text not in known]
    return groups


def scores_of(pipeline: Any, texts: Sequence[str], sampling: Sampling) -> dict[str, Tensor]:
    """Per detector `(P,)`, higher for memorized prompts."""
    found: dict[str, list[Tensor]] = {detector.name: [] for detector in DETECTORS}
    each = sampling.prompts_at_once * 4
    for start in range(0, len(texts), each):
        readings = read_prompts_with(pipeline, texts[start : start + each], DETECTORS, sampling=sampling)
        for detector in DETECTORS:
            score = detector.score(readings[detector.name])
            found[detector.name].append(score if detector.higher_means_memorized else -score)
    return {name: torch.cat(parts).double() for name, parts in found.items()}


def figures(p: Tensor, groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the figures of p-values in the order of groups."""
    named, surely, start = benjamini_hochberg(p) < LEVEL, holm(p) < LEVEL, 0
    found: dict[str, Any] = {}
    for name, texts in groups.items():
        rows = slice(start, start + len(texts))
        own, start = p[rows], start + len(texts)
        small, above = int((own <= LEVEL).sum()), int((own < 0.5).sum())
        found[name] = {
            "n": len(own),
            "p_at_most_0.05": {"k": small, "interval": list(proportion_interval(small, len(own)))},
            "p_at_most_0.1": int((own <= 0.1).sum()),
            "above_median": {"k": above, "interval": list(proportion_interval(above, len(own)))},
            "median": float(own.median()),
            "q_below_0.05": int(named[rows].sum()),
            "holm_below_0.05": int(surely[rows].sum()),
        }
    return found


def case(
    pipeline: Any, groups: Mapping[str, Sequence[str]], *, nulls: Mapping[str, Sequence[str]], sampling: Sampling
) -> dict[str, Any]:
    """Everything about one model and its captions.

    Args:
        pipeline: the model.
        groups: captions by group.
        nulls: null prompts by the way they were made.
        sampling: how images are sampled.
    """
    texts = [text for group in groups.values() for text in group]
    scores, lengths = scores_of(pipeline, texts, sampling), prompt_lengths(pipeline, texts)
    found: dict[str, Any] = {}
    for kind, made in nulls.items():
        null, many = scores_of(pipeline, made, sampling), prompt_lengths(pipeline, made)
        about = {"lengths": lengths, "null_lengths": many}
        rows = {name: p_values(score, null[name], **about) for name, score in scores.items()}
        rows["combined"] = combined_p_values(scores, null, **about)
        found[kind] = {
            "null_prompts": len(made),
            "examples": list(made[:5]),
            "mean_tokens": {"null": float(many.double().mean()), "prompts": float(lengths.double().mean())},
            "detectors": {name: figures(p, groups) for name, p in rows.items()},
        }
    return found


def print_case(title: str, found: Mapping[str, Any]) -> None:
    """A table for each kind of null prompts."""
    for kind, part in found.items():
        table = Table(
            "detector", "group", "n", "p <= 0.05", "interval", "above median", "q < 0.05", "Holm", title=title
        )
        for name, groups in part["detectors"].items():
            for group, row in groups.items():
                small, above = row["p_at_most_0.05"], row["above_median"]
                low, high = small["interval"]
                share = f"{small['k'] / row['n']:.3f}"
                table.add_row(
                    *(name, group, str(row["n"]), share, f"{low:.3f} to {high:.3f}", f"{above['k'] / row['n']:.2f}"),
                    *(str(row["q_below_0.05"]), str(row["holm_below_0.05"])),
                )
        Console(width=130).print(f"{part['null_prompts']} null prompts, {kind}", table)


def main(
    runs: list[str],
    json: str | None = None,
    *,
    null: int = 399,
    alone: int = 199,
    most: int = 150,
    seen: int = 40,
    images_per_prompt: int = 4,
    embedded: bool = True,
) -> dict[str, Any]:
    """Measure, print tables and write the figures.

    Args:
        runs: folders of finished runs on data of `copies_data.py`.
        json: where to write the figures.
        null: null prompts of each case.
        alone: null prompts made of single captions, of each run; 0 for none.
        most: unseen captions of each case at most.
        seen: captions of unique training pictures of each run.
        images_per_prompt: images sampled of each prompt.
        embedded: measure the embedded model too.
    """
    quiet()
    sampling = Sampling(seeds=range(images_per_prompt), progress=False)
    cases: list[tuple[str, str, dict[str, list[str]]]] = [
        (f"{Path(run).name}", f"{run}/pipeline", case_of_run(Path(run), most=most, seen=seen)) for run in runs
    ]
    for shard in ("emoji-heldout", "clipart-pd") if embedded else ():
        texts = captions_of(f"assets/{shard}.tar")
        draw = random.Random(0)  # noqa: S311 (no secret)
        cases.append((f"tiny-sd, {shard}", EMBEDDED, {UNSEEN: draw.sample(texts, min(most, len(texts)))}))
    results: dict[str, Any] = {"sampling": sampling.said(), "null": null, "cases": {}}
    for title, model, groups in cases:
        start, pipeline = time.perf_counter(), load_pipeline(model)

        def tokens(texts: Sequence[str], pipeline: Any = pipeline) -> list[int]:
            return prompt_lengths(pipeline, texts).tolist()

        texts = [text for group in groups.values() for text in group]
        nulls = {"made of all captions": null_prompts(texts, null, lengths=tokens)}
        if MEMORIZED in groups:
            # As somebody would do who names a file of null prompts: no memorized caption lends its words.
            nulls["made of the unseen captions"] = null_prompts(groups[UNSEEN], null, lengths=tokens)
        if MEMORIZED in groups and alone:
            single = [one for text in texts for one in null_prompts([text], 2, lengths=tokens)]
            draw = random.Random(0)  # noqa: S311 (no secret)
            nulls["each made of one caption"] = draw.sample(list(dict.fromkeys(single)), alone)
        results["cases"][title] = case(pipeline, groups, nulls=nulls, sampling=sampling)
        print_case(title, results["cases"][title])
        print(f"{title}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        if json is not None:
            Path(json).write_text(dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
