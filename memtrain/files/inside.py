"""Names from a file that become paths. They stay inside a folder."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from memtrain.errors import DataError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""A name that is safe as part of a path."""


def safe_name(name: object, where: str) -> str:
    """Return a name that is safe as part of a path.

    Args:
        name: the name in the file.
        where: the file and the field of the name, for the error.

    Raises:
        DataError: if it is not a text, or holds other characters than letters, digits, `.`, `_` and `-`.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise DataError(
            f"{where} is {name!r:.80}",
            expected="a name of letters, digits, '.', '_' and '-'",
            remedy="correct the name in the file",
        )
    return name


def inside(folder: Path, name: str, where: str) -> Path:
    """Return the file below a folder that a relative name means; links are followed.

    Args:
        folder: the folder that must hold the file.
        name: the path of the file relative to the folder.
        where: the file and the line or field of the name, for the error.

    Raises:
        DataError: if the file lies outside the folder.
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
    """Return the file below a folder that a relative name means. Links of the folder's owner are allowed.

    Args:
        folder: the folder of results.
        name: the path of the file relative to the folder.
        where: the file and the field of the name, for the error.

    Raises:
        DataError: if the name is not a path, or leads out of the folder.
    """
    if isinstance(name, str) and name and "\0" not in name:
        kinds = PurePosixPath(name), PureWindowsPath(name)
        if not any(path.is_absolute() or path.drive or ".." in path.parts for path in kinds):
            return folder / name
    raise DataError(
        f"{where} is {name!r:.80}",
        expected="a file below the folder",
        remedy="repeat the command that wrote it, or remove it",
    )
