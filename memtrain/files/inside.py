"""Names that a file holds and that become paths: they stay inside a folder."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from memtrain.errors import DataError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""A name that is safe as part of a path."""


def safe_name(name: object, where: str) -> str:
    """A name as part of a path, if it is one.

    Args:
        name: what a file says.
        where: which file, and which field of it; for the error.

    Raises:
        DataError: if it is no text, or holds anything but letters, digits, `.`, `_` and `-`.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise DataError(
            f"{where} is {name!r:.80}", expected="a name of letters, digits, '.', '_' and '-'", remedy="mend the file"
        )
    return name


def inside(folder: Path, name: str, where: str) -> Path:
    """The file below a folder that a relative name stands for, links followed.

    Args:
        folder: which the file has to lie in.
        name: its path relative to the folder.
        where: which file says so, and in which line or field; for the error.

    Raises:
        DataError: if it lies elsewhere.
    """
    try:
        path = folder / name
        if path.resolve().is_relative_to(folder.resolve()):
            return path
    except (OSError, ValueError):
        pass
    raise DataError(
        f"{where} points outside the folder: {name!r:.80}",
        expected="a file below the folder",
        remedy="move the file into the folder",
    )


def below(folder: Path, name: object, where: str) -> Path:
    """The file below a folder that a relative name stands for, whatever links its owner has put there.

    Args:
        folder: of results.
        name: its path relative to the folder.
        where: which file says so, and in which field; for the error.

    Raises:
        DataError: if the name is none, or leads out of the folder.
    """
    if isinstance(name, str) and name and "\0" not in name:
        kinds = PurePosixPath(name), PureWindowsPath(name)
        if not any(path.is_absolute() or path.drive or ".." in path.parts for path in kinds):
            return folder / name
    raise DataError(
        f"{where} is {name!r:.80}", expected="a file below the folder", remedy="run what wrote it again, or remove it"
    )
