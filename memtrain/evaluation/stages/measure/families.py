"""Pictures of which the data hold several files, and captions that several pictures share, as results list them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from memtrain.evaluation.measures.replication import Replication
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.records import NEVER_TRAINED, SHARED_CAPTION

MOST = 50
"""Families listed."""


def picture_visits(samples: RunSamples, key: str) -> int:
    """Visits of a prompt's picture per epoch under any name; of a made variant, its own."""
    visits = samples.visits or {}
    if samples.families is None:
        return visits.get(key, 0)
    return sum(visits.get(member, 0) for member in samples.families.picture_members(samples.families.picture(key)))


def summarize_families(
    samples: RunSamples, distances: Replication, *, reproduced: Tensor, thresholds: Tensor
) -> dict[str, Any]:
    """How many there are, and those that were asked for.

    Args:
        samples: P prompts.
        distances: of P prompts and K seeds.
        reproduced: `(P,)` bool.
        thresholds: `(P,)`, of the ratio of each prompt; lower for more files.

    Returns:
        `known` (whether anybody has looked), `pictures` with several training files, their `files`, `captions` that
        several training pictures share, and `asked`, the families among the prompts: `name` (a key), `group`, `files`,
        `captions` sampled, whether it is `reproduced`, and its lowest `ratio` with the `threshold` that it was
        held to; reproduced ones first, then those of the most files.
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
        # Of a picture's captions the one that is nearest in its own terms.
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
