"""The names of the baselines of `localize`; their masks are in `compared_masks.py`, which takes longer to import."""

from __future__ import annotations

from memtrain.errors import ConfigurationError

BASELINES = (
    "initial",
    "random",
    "most_active",
    "frequent",
    "frequent_per_layer",
    "frequent_sets",
    "random_frequent",
)


def read_baselines(text: str) -> tuple[str, ...]:
    """Read the names of a list with commas, each once; `all` for all.

    Raises:
        ConfigurationError: for an unknown name.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if names == ("all",):
        return BASELINES
    wrong = [name for name in names if name not in BASELINES]
    if wrong:
        raise ConfigurationError(
            f"There is no baseline {wrong[0]!r}",
            expected=f"some of {', '.join(BASELINES)}, with commas between them, or all",
            remedy="correct --baselines",
        )
    return names
