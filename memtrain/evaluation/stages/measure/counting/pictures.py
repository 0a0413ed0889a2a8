"""Share of training pictures that are reproduced: of all pictures, by size of the family, and by a group of the data.

Method: a picture counts as reproduced if the similarity of any generation of any of its prompts exceeds the threshold.
Pictures are counted, not files or prompts. The files of a picture family are one picture.
Source: the share of training images memorized of Carlini et al., "Extracting Training Data from Diffusion Models"
(USENIX Security 2023), and N_mem of Dar et al., "Unconditional latent diffusion models memorize patient imaging data"
(Nature Biomedical Engineering 2025). A group (patient, artist, series) counts as reproduced if one of its pictures is
reproduced. This answers whether any picture of a patient comes back.
Cannot: cover pictures that no prompt asked for. The share is that of the sampled pictures. It holds for all pictures
only if the sampled ones are a random choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memtrain.evaluation.measures.copying.base import Compared
from memtrain.evaluation.stages.measure.counting.shares import copies, counted, names_of

SIZES = ((1, 1), (2, 4), (5, 9), (10, 49), (50, None))
"""Ranges of family sizes that are counted together: first and last size."""


def reproduced_pictures(compared: Compared, threshold: float, pictures: Sequence[str | None]) -> dict[str, bool]:
    """Return whether each picture is reproduced, by name.

    Args:
        compared: the similarities of P prompts.
        threshold: the similarity above which a prompt counts as reproduced.
        pictures: the P names of the prompts' pictures; None for pictures that were not trained on.
    """
    found = copies(compared.best, threshold).tolist()
    return {name: any(found[row] for row in rows) for name, rows in names_of(pictures).items()}


def count_pictures(
    compared: Compared,
    threshold: float,
    *,
    pictures: Sequence[str | None],
    files: Mapping[str, int] | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """Count the training pictures that are reproduced.

    Args:
        compared: the similarities of P prompts.
        threshold: the similarity above which a prompt counts as reproduced.
        pictures: the P names of the prompts' pictures; None for pictures that were not trained on (held out).
        files: the number of visits or files of each picture, by name; 1 for other names.
        level: the coverage of the intervals.

    Returns:
        `n`, `reproduced`, `share`, `interval`, `names` (of reproduced pictures), and `by_size`: for each range of sizes
        that occurs, `files` (`"1"`, `"2-4"`, ...) and the same figures.
    """
    found = reproduced_pictures(compared, threshold, pictures)
    summary = counted(sum(found.values()), len(found), level=level)
    summary["names"] = [name for name, yes in found.items() if yes]
    summary["by_size"] = []
    for low, high in SIZES:
        inside = [
            yes
            for name, yes in found.items()
            if low <= (files or {}).get(name, 1) and (high is None or (files or {}).get(name, 1) <= high)
        ]
        if inside:
            label = f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
            summary["by_size"].append({"files": label, **counted(sum(inside), len(inside), level=level)})
    return summary


def count_by_group(
    compared: Compared,
    threshold: float,
    *,
    pictures: Sequence[str | None],
    values: Mapping[str, str],
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """Count the reproduced pictures by a column of the user's data, such as patient or artist.

    Args:
        compared: the similarities of P prompts.
        threshold: the similarity above which a prompt counts as reproduced.
        pictures: the P names of the prompts' pictures; None for pictures that were not trained on.
        values: the values of the column, by name of the picture; other pictures are left out.
        level: the coverage of the intervals.

    Returns:
        By value `n` (pictures), `reproduced`, `share` and `interval`; values with most reproduced pictures come first.
    """
    groups: dict[str, list[bool]] = {}
    for name, yes in reproduced_pictures(compared, threshold, pictures).items():
        if name in values:
            groups.setdefault(values[name], []).append(yes)
    order = sorted(groups, key=lambda value: (-sum(groups[value]), value))
    return {value: counted(sum(groups[value]), len(groups[value]), level=level) for value in order}


def count_groups(by_group: Mapping[str, Mapping[str, Any]], *, level: float = 0.95) -> dict[str, Any]:
    """Count the groups (patients, artists) with at least one reproduced picture.

    Args:
        by_group: the figures from :func:`count_by_group`.
        level: the coverage of the interval.

    Returns:
        `n` (groups), `reproduced`, `share` and `interval`. Groups with many pictures have many chances to count.
    """
    return counted(sum(one["reproduced"] > 0 for one in by_group.values()), len(by_group), level=level)
