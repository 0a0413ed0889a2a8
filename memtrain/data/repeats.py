"""Repeats: the visits of an image per epoch, as the user sets them.

`repeats` is one number for all images, a mapping of patterns to numbers, or `from_folders`. In a mapping
(`{"closeup/*": 5, "*.jpg": 2}`) the first pattern that fits a key counts, and other images are visited once. With
`from_folders`, a folder with the name `10_name` means 10 visits of its images, as in kohya's scripts. Repeats are
visits of one picture. All of them count towards its evidence, and a picture with many repeats is memorized sooner.
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
    """Return the visits per epoch of each key.

    Args:
        keys: the keys of the samples.
        repeats: one number, patterns with numbers, or `from_folders`.

    Raises:
        ConfigurationError: if the value has another form, a number is below 1, or a pattern fits no key.
    """
    if isinstance(repeats, int):
        found = [repeats] * len(keys)
    elif isinstance(repeats, str):
        if repeats != FROM_FOLDERS:
            raise ConfigurationError(
                f"repeats={repeats!r}",
                expected="a number, a mapping of patterns to numbers, or `from_folders`",
                remedy="correct --data.init_args.repeats",
            )
        found = [_of_folder(key) for key in keys]
    else:
        unused = [pattern for pattern in repeats if not any(fnmatchcase(key, pattern) for key in keys)]
        if unused:
            raise ConfigurationError(
                f"repeats: no sample's key fits {unused} (first keys {sorted(keys)[:3]})",
                expected="patterns of keys, such as 'closeup/*'",
                remedy="correct the patterns in data.init_args.repeats",
            )
        found = [next((n for pattern, n in repeats.items() if fnmatchcase(key, pattern)), 1) for key in keys]
    if odd := [count for count in found if not isinstance(count, int) or count < 1]:
        raise ConfigurationError(
            f"repeats of {odd[0]}",
            expected="a whole number of at least 1",
            remedy="raise the number; leave images out with data.init_args.exclude",
        )
    return found


def _of_folder(key: str) -> int:
    """Return the number of the innermost folder with a number; 1 if there is none."""
    for part in reversed(PurePosixPath(key).parts[:-1]):
        if match := _FOLDER.fullmatch(part):
            return int(match[1])
    return 1
