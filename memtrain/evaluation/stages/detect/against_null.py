"""Comparison of prompts with null prompts: p-values, q-values and sentences.

`prompts.parquet` gets `p_value`, `q_value` and `holm` of all detectors together, and `p_value.<detector>` and
`q_value.<detector>` of each detector. `detection.json` gets `null`. The null prompts and their scores go to
`null_prompts.parquet`, which can serve as the null of another detection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from memtrain.detectors.base import Detector
from memtrain.evaluation.stages.detect.p_values import (
    LEVEL,
    benjamini_hochberg,
    combined_p_values,
    fewest_to_name,
    fit_of_null,
    holm,
    p_values,
)
from memtrain.evaluation.stages.null_prompts import ENOUGH


@dataclass(frozen=True, kw_only=True)
class Null:
    """Null prompts, which the model cannot have seen.

    Attributes:
        texts: the n different prompts.
        made: whether they were made from the prompts in question; else the user gave them.
        detectors: the detectors that read them.
    """

    texts: Sequence[str]
    made: bool
    detectors: Sequence[Detector]


def against_null(
    null: Null,
    scores: Mapping[str, Tensor],
    null_scores: Mapping[str, Tensor],
    *,
    lengths: Tensor,
    null_lengths: Tensor,
    seconds: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare prompts with null prompts.

    Args:
        null: the null prompts.
        scores: the scores of the prompts by detector, `(P,)`, in the detector's own direction.
        null_scores: the scores of the null prompts by detector, `(n,)`.
        lengths: the numbers of tokens of the prompts, `(P,)`.
        null_lengths: the numbers of tokens of the null prompts, `(n,)`.
        seconds: the seconds per null prompt.

    Returns:
        Columns for `prompts.parquet`, and the part `null` of `detection.json`.
    """
    about = {"lengths": lengths, "null_lengths": null_lengths}
    own: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    reasons: dict[str, str] = {}
    for detector in null.detectors:
        sign = 1 if detector.higher_means_memorized else -1
        score, made = sign * scores[detector.name], sign * null_scores[detector.name]
        if bool(torch.isfinite(score).all()) and bool(torch.isfinite(made).all()):
            own[detector.name], others[detector.name] = score, made
        else:
            reasons[detector.name] = "some of its scores are not finite"
    count, prompts = len(null.texts), len(lengths)
    said: dict[str, Any] = {
        "kind": "made of the prompts" if null.made else "own",
        "prompts": count,
        "smallest_p_value": 1 / (count + 1),
        "fewest_to_name": fewest_to_name(prompts, count),
        "level": LEVEL,
        "seconds_per_prompt": seconds,
        "prompts_outside_lengths": int(((lengths < null_lengths.min()) | (lengths > null_lengths.max())).sum()),
        "detectors": {},
        "left_out": reasons,
        "combined": None,
    }
    if not own:
        return {}, {**said, "reason": "no detector gave finite scores"}
    columns: dict[str, Any] = {}
    together = combined_p_values(own, others, **about) if len(own) > 1 else None
    for name, score in own.items():
        p = p_values(score, others[name], **about)
        together = p if together is None else together
        columns |= {f"p_value.{name}": p.tolist(), f"q_value.{name}": benjamini_hochberg(p).tolist()}
        said["detectors"][name] = _counts(p)
    assert together is not None
    said["combined"] = _counts(together)
    overall = {
        "p_value": together.tolist(),
        "q_value": benjamini_hochberg(together).tolist(),
        "holm": holm(together).tolist(),
    }
    return {**overall, **columns}, said


def _counts(p: Tensor) -> dict[str, Any]:
    return {
        "q_below_level": int((benjamini_hochberg(p) < LEVEL).sum()),
        "holm_below_level": int((holm(p) < LEVEL).sum()),
        "p_at_most_level": int((p <= LEVEL).sum()),
        **fit_of_null(p),
    }


def null_table(null: Null, lengths: Tensor, scores: Mapping[str, Tensor]) -> pa.Table:
    """Make a table with one row per null prompt."""
    columns = {name: score.tolist() for name, score in scores.items()}
    return pa.table({"prompt": list(null.texts), "prompt_length": lengths.tolist(), **columns})


def sentences(results: Mapping[str, Any]) -> list[str]:
    """Describe the comparison with null prompts, and its limits.

    Args:
        results: the content of `detection.json`.

    Returns:
        The sentences, the finding first; an empty list if there were no null prompts.
    """
    null = results.get("null")
    if null is None:
        return []
    found, prompts = null["combined"], results["prompts"]
    if found is None:
        return [f"There are no p-values: {null['reason']}."]
    named, surely = found["q_below_level"], found["holm_below_level"]
    level = f"{null['level']:g}"
    if prompts == 1:
        verb = "scores" if named else "does not score"
        said = [f"The prompt {verb} higher than prompts that the model cannot have seen (p < {level})."]
    else:
        verb = "scores" if named == 1 else "score"
        said = [
            f"{named} of {prompts} prompts {verb} higher than prompts that the model cannot have seen (q < {level}).",
            f"This allows for a share of {level} of false ones among the named prompts. With a chance of {level} "
            f"for any false one at all, the number is {surely} (Holm).",
        ]
    return [*said, *_remarks(null, prompts)]


def _remarks(null: Mapping[str, Any], prompts: int) -> list[str]:
    made = "made by exchanging words between the prompts" if prompts > 1 else "made by exchanging words of the prompt"
    kind = made if null["kind"] != "own" else "from your own file"
    corrected = f", and q is p corrected for {prompts} prompts" if prompts > 1 else ""
    said = [
        f"Each prompt is compared with {null['prompts']} null prompts, {kind}, at equal length. The p-value is the "
        f"share of null prompts that score at least as high{corrected}."
    ]
    if null["kind"] != "own" and prompts < ENOUGH:
        said.append(
            f"Fewer than {ENOUGH} prompts have too few words to exchange, so null prompts hold words of a list. "
            "With such null prompts, noise_similarity gave small p-values three times too often in our measurements."
        )
    if null["fewest_to_name"] > 1:
        said.append(
            f"With so few null prompts, no prompt can be named unless {null['fewest_to_name']} score above all null "
            "prompts. More null prompts (--null) can name single prompts."
        )
    share = null["combined"]["above_median"]
    if share["n"] >= 10 and share["interval"][0] > 0.5:
        said.append(
            f"{share['k']} of {share['n']} prompts score above the median of the null prompts, and half is expected. "
            "Either many prompts are memorized, or null prompts score lower for another reason. In the second case the "
            "p-values are too small."
        )
    if null["prompts_outside_lengths"]:
        said.append(
            f"{null['prompts_outside_lengths']} prompt(s) are longer or shorter than every null prompt. Their "
            "p-values are extrapolated."
        )
    return said


CANNOT_SAY = (
    "A small p-value shows that the model treats a prompt unlike null prompts of the same kind and length. It does not "
    "show that the model reproduces an image, nor which one. Sample the prompt and compare (`memtrain measure`).",
    "A large p-value does not clear a prompt. A detector may be blind to it, and images that the model learned without "
    "reproducing them do not show.",
    "Null prompts make little sense. Null prompts made from the prompts also hold words of memorized prompts. If "
    "several prompts are memorized, some null prompts therefore score high, and p-values are too large. A file of your "
    "own null prompts (--null FILE) avoids both.",
)
"""Limits of every p-value of this module."""
