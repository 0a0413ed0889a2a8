"""Families in the results: pictures of which the data hold several files, and captions that several pictures share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from memtrain.evaluation.measures.replication import Replication
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.records import NEVER_TRAINED, SHARED_CAPTION

MOST = 50
"""Largest number of listed families."""


def picture_visits(samples: RunSamples, key: str) -> int:
    """Return the visits per epoch of a prompt's picture over all its files; a made variant counts by itself."""
    visits = samples.visits or {}
    if samples.families is None:
        return visits.get(key, 0)
    return sum(visits.get(member, 0) for member in samples.families.picture_members(samples.families.picture(key)))


def summarize_families(
    samples: RunSamples, distances: Replication, *, reproduced: Tensor, thresholds: Tensor
) -> dict[str, Any]:
    """Count the families of the data, and list the families that were sampled.

    Args:
        samples: the samples of P prompts.
        distances: the distances of P prompts and K seeds.
        reproduced: whether each prompt is reproduced, `(P,)` bool.
        thresholds: the threshold of each prompt's ratio, `(P,)`; lower for more files.

    Returns:
        `known` (whether the data were scanned), `pictures` (number with several training files), `files` (of these
        pictures), `captions` (number that several training pictures share), and `asked` (the families among the
        prompts). Each entry of `asked` has `name` (a key), `group`, `files`, `captions` (number sampled), `reproduced`,
        and its lowest `ratio` with its `threshold`. Reproduced families come first, then families with the most files.
    """
    families = samples.families
    if families is None:
        return {"known": False, "pictures": None, "files": None, "captions": None, "asked": []}
    files: dict[str, list[str]] = {}
    under: dict[str, list[str]] = {}
    for key in samples.training_keys:
        files.setdefault(families.picture(key), []).append(key)
        under.setdefault(families.caption(key), []).append(key)
    several = {name: keys for name, keys in files.items() if len(keys) > 1}
    shared = {name: keys for name, keys in under.items() if len({families.picture(key) for key in keys}) > 1}
    asked: dict[tuple[str, str], dict[str, Any]] = {}
    for row, prompt in enumerate(samples.prompts):
        caption = prompt.group == SHARED_CAPTION
        name = families.caption(prompt.key) if caption else families.picture(prompt.key)
        members = (shared if caption else several).get(name)
        if prompt.group in NEVER_TRAINED or members is None:
            continue
        one = asked.setdefault(
            (prompt.group, name),
            {
                "name": name,
                "group": prompt.group,
                "files": len(members),
                "captions": 0,
                "reproduced": False,
                "ratio": float("inf"),
                "threshold": float(thresholds[row]),
            },
        )
        one["captions"] += 1
        one["reproduced"] |= bool(reproduced[row])
        ratio, limit = float(distances.best[row]), float(thresholds[row])
        # The caption with the lowest ratio relative to its own threshold stands for the picture.
        if ratio / limit < one["ratio"] / one["threshold"]:
            one["ratio"], one["threshold"] = ratio, limit
    listed = sorted(asked.values(), key=lambda one: (not one["reproduced"], -one["files"], one["name"]))
    return {
        "known": True,
        "pictures": len(several),
        "files": sum(map(len, several.values())),
        "captions": len(shared),
        "asked": listed[:MOST],
    }
