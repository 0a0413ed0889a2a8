"""Section of `attention` in the report: its pictures, and the mean entropies."""

from __future__ import annotations

from pathlib import Path

from memtrain.evaluation.report.section import Section, joined, made, paragraph, picture, results_of, table
from memtrain.evaluation.stages.attention.attention import FOLDER
from memtrain.files.inside import below


def sections(folder: Path) -> list[Section]:
    """Make the section on the entropy of each group of prompts, with the pictures.

    Args:
        folder: the folder of the results.
    """
    results = results_of(folder / FOLDER, "attention.json")
    if results is None:
        return []
    rows = [
        (name, *(_mean(found[part]) for part in ("all_tokens", "eos_and_padding")), found["prompts"])
        for name, found in results["entropy"].items()
    ]
    body = [
        paragraph(
            "The charts show the entropy of the attention at each sampling step (mean and the middle 80% of the "
            "prompts). For some prompts they also show the attention that each token receives. In the published work, "
            "the attention of memorized prompts stays spread, so their entropy is higher."
        ),
        table(("prompts", "mean entropy, all tokens", "EOS and padding", "n"), rows),
        *(
            picture(
                below(folder / FOLDER, name, "attention.json: pictures"), alt="Attention to text over sampling steps"
            )
            for name in results["pictures"]
        ),
    ]
    return [Section(title="Attention to text", body=joined(body), place=30, facts=made(results, "attention"))]


def _mean(found: dict[str, object]) -> str:
    ends = found["interval"]
    inside = f" ({ends[0]:.3f} to {ends[1]:.3f})" if isinstance(ends, list) else ""
    return f"{found['mean']:.3f}{inside}"
