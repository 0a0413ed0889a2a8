"""Repeats that a user asks for: how often an image is visited per epoch, by its key.

What: one number for all images, a mapping of patterns to numbers (`{"closeup/*": 5, "*.jpg": 2}`; the first pattern
that fits a key counts, an image that none fits is visited once), or `from_folders`: the folder of an image is called
`10_name` and means 10, as kohya's scripts have it. Repeats are visits of one picture: all of them count towards its
evidence, and a picture of many is memorized sooner.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from memtrain.errors import ConfigurationError

FROM_FOLDERS = "from_folders"
Repeats = int | str | Mapping[str, int]
_FOLDER = re.compile(r"(\d+)_.*")


def repeats_of(keys: Sequence[str], repeats: Repeats) -> list[int]:
    """Visits per epoch of each key.

    Args:
        keys: of samples.
        repeats: one number, patterns with numbers, or `from_folders`.

    Raises:
        ConfigurationError: if it is none of these, a number is below 1, or a pattern fits no key.
    """
    if isinstance(repeats, int):
        found = [repeats] * len(keys)
    elif isinstance(repeats, str):
        if repeats != FROM_FOLDERS:
            raise ConfigurationError(
                f"repeats={repeats!r}",
                expected="a number, a mapping of patterns to numbers, or `from_folders`",
                remedy="change it",
            )
        found = [_of_folder(key) for key in keys]
    else:
        unused = [pattern for pattern in repeats if not any(fnmatchcase(key, pattern) for key in keys)]
        if unused:
            raise ConfigurationError(
                f"repeats: no sample's key fits {unused}, such as {sorted(keys)[:3]}",
                expected="patterns of keys, such as 'closeup/*'",
                remedy="change the patterns",
            )
        found = [next((n for pattern, n in repeats.items() if fnmatchcase(key, pattern)), 1) for key in keys]
    if odd := [count for count in found if not isinstance(count, int) or count < 1]:
        raise ConfigurationError(
            f"repeats of {odd[0]}",
            expected="a whole number of at least 1",
            remedy="leave images out with data.init_args.exclude",
        )
    return found


def _of_folder(key: str) -> int:
    """The number of the innermost folder that has one; 1 without."""
    for part in reversed(PurePosixPath(key).parts[:-1]):
        if match := _FOLDER.fullmatch(part):
            return int(match[1])
    return 1
