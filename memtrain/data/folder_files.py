r"""The files of a data folder: its images, the names of a table, and links.

Links in a data folder are followed, to files and to folders, wherever they lead. The cache of the Hugging Face Hub
consists of links (`snapshots/…/a.png` is a link to `blobs/…`), and people collect folders by links. A person who can
make a link in the folder could also have put the file there. A *name inside a file* is different: a stranger's table
(`metadata.jsonl`) must not reach files that the user never put into the folder. So absolute names and names that lead
out by `..` are refused, and `..` is removed from a name before a link is followed. The target of a link is decoded as
an image or read as a caption, and never written to. A warning counts links that lead out of the folder.

Names that are spelled differently on the disk are found if only one file can be meant. Examples are `\` for `/`
(written on Windows), and another Unicode normal form (macOS writes `e` and an accent where others write `é`).
"""

from __future__ import annotations

import logging
import os
import posixpath
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from memtrain.data.sample_texts import LONGEST_KEY
from memtrain.errors import DataError
from memtrain.files.pictures import SUFFIXES, UNDECODED_SUFFIXES

log = logging.getLogger(__name__)
MASK_SUFFIX = ".mask.png"
"""Ending of a mask's file name; the rest is the name of its image."""


def files_below(folder: Path) -> Iterator[Path]:
    """Yield all files of a folder and of the folders below it, except hidden ones. Links are followed.

    Each folder is visited once.

    Raises:
        DataError: if a folder cannot be read, or if a file's name is not UTF-8.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"The folder {error.filename!r} cannot be read: {error.strerror}",
            expected="folders that you may read",
            remedy="change its permissions, or move it to another place",
        ) from error

    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        place = os.stat(root)
        if (place.st_dev, place.st_ino) in seen:  # a link to a folder that was visited, perhaps its own parent
            folders[:] = []
            continue
        seen.add((place.st_dev, place.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(root, require_text(name, f"A file name in {root}"))


class Listed:
    """The existing files, found with one listing of each folder, because single questions are slow on a network disk.

    Links, and names that are not in the listing, are checked one by one.
    """

    def __init__(self) -> None:
        self._plain: dict[str, set[str]] = {}

    def has(self, path: Path) -> bool:
        """Return whether a file exists; links are followed."""
        return self.is_plain(path) or is_file(path)

    def is_plain(self, path: Path) -> bool:
        """Return whether a file exists that is not a link."""
        parent, name = os.path.split(path)
        if parent not in self._plain:
            self._plain[parent] = _plain_files(parent)
        return name in self._plain[parent]


def _plain_files(folder: str) -> set[str]:
    """Return the names of a folder's files that are not links; an empty set if the folder does not exist."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except (OSError, ValueError):
        return set()


def folder_images(folder: Path, *, quiet: bool = False, listed: Listed | None = None) -> list[Path]:
    """List the files of a folder and of the folders below it with an image's ending, sorted.

    Hidden files and masks are left out. An image of a kind that is not decoded (a.psd, a.heic) is left out, and counted
    in a warning, if a decoded image with its name lies beside it.

    Args:
        folder: the folder.
        quiet: whether to leave out the warning.
        listed: the existing files, as far as they are known.

    Raises:
        DataError: if a folder cannot be read, or if an image is a broken link, a pipe or a device.
    """
    found = sorted(
        path
        for path in files_below(folder)
        if path.suffix.lower() in SUFFIXES | UNDECODED_SUFFIXES and not path.name.endswith(MASK_SUFFIX)
    )
    listed = listed or Listed()
    odd = [str(path.relative_to(folder)) for path in found if not listed.has(path)]
    if odd:
        raise DataError(
            f"{len(odd)} image(s) in {folder} are broken links or not files, first {odd[:3]}",
            expected="files",
            remedy="repair or remove the links",
        )
    decoded = {path.with_suffix("") for path in found if path.suffix.lower() in SUFFIXES}
    originals = [
        path for path in found if path.suffix.lower() in UNDECODED_SUFFIXES and path.with_suffix("") in decoded
    ]
    if originals and not quiet:
        log.warning(
            "%d file(s) of %s of kinds that are not decoded are left out, because an image lies beside each, first %s",
            len(originals),
            folder,
            [str(path.relative_to(folder)) for path in originals[:3]],
        )
    left_out = set(originals)
    return [path for path in found if path not in left_out]


def require_decoded(folder: Path, images: Sequence[Path]) -> None:
    """Refuse images of kinds that are not decoded.

    Raises:
        DataError: with their kinds and numbers.
    """
    wrong = [path for path in images if path.suffix.lower() in UNDECODED_SUFFIXES]
    if wrong:
        kinds = sorted({path.suffix.lower() for path in wrong})
        counts = ", ".join(f"{sum(path.suffix.lower() == kind for path in wrong)} {kind}" for kind in kinds)
        raise DataError(
            f"{len(wrong)} image(s) in {folder} are of kinds that are not decoded ({counts}), first "
            f"{[str(path.relative_to(folder)) for path in wrong[:3]]}",
            expected=f"images that end in {', '.join(sorted(SUFFIXES))}",
            remedy="convert them, for instance to PNG or JPEG, or move them to another folder",
        )


def tell_of_links(folder: Path, files: Sequence[Path], listed: Listed) -> None:
    """Warn of files that lie outside the folder."""
    home = folder.resolve()
    if home.parent.name == "snapshots":  # the Hub's cache, whose files are links to its blobs
        home = home.parent.parent
    inside: dict[Path, bool] = {}

    def within(file: Path) -> bool:
        if not listed.is_plain(file):
            return file.resolve().is_relative_to(home)
        if (parent := file.parent) not in inside:
            inside[parent] = parent.resolve().is_relative_to(home)
        return inside[parent]

    outside = [file for file in files if not within(file)]
    if outside:
        log.warning(
            "%d of %d images of %s are links to files outside it, first %s -> %s",
            len(outside),
            len(files),
            folder,
            outside[0].relative_to(folder),
            outside[0].resolve(),
        )


def named_file(folder: Path, name: object, where: str, listed: Listed | None = None) -> str:
    """Return the file that a table names, as a path relative to its folder, without `.` and `..`.

    Args:
        folder: the folder of the table.
        name: the name in the table.
        where: the file and the line or field of the name, for the error.
        listed: the existing files, as far as they are known.

    Raises:
        DataError: if the name is not a text, is absolute, or leads out of the folder.
    """
    if not isinstance(name, str):
        raise DataError(f"{where} is not a text: {name!r:.80}", expected="a file name", remedy="correct the name")
    require_text(name, where)
    if len(name) > LONGEST_KEY:
        raise DataError(
            f"{where} names a file in {len(name)} characters: {name[:40]!r}...",
            expected=f"at most {LONGEST_KEY} characters",
            remedy="rename the file, and correct its name here",
        )
    plain = [posixpath.normpath(name)]
    if "\\" in name:
        plain.append(posixpath.normpath(plain[0].replace("\\", "/")))
    if any(one.startswith("/") or one == ".." or one.startswith("../") for one in plain):
        raise DataError(
            f"{where} points outside the folder: {name!r:.80}",
            expected="a name relative to the folder, of a file below it",
            remedy="move the file or a link to it into the folder, and use its new name",
        )
    spelt = [form for one in plain for form in (one, *(unicodedata.normalize(kind, one) for kind in ("NFC", "NFD")))]
    there = is_file if listed is None else listed.has
    return next((one for one in spelt if there(folder / one)), plain[0])


def require_text(text: str, what: str) -> str:
    """Return a text that can be written as UTF-8.

    Args:
        text: the text.
        what: the description of the text, for the error.

    Raises:
        DataError: if the text holds a NUL, or is not UTF-8.
    """
    problem = "holds a NUL character" if "\0" in text else ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        problem = "is not UTF-8"
    if problem:
        raise DataError(f"{what} {problem}: {text!a:.80}", expected="UTF-8 text", remedy="rename or correct it")
    return text


def is_file(path: Path) -> bool:
    """Return whether a file exists; links are followed. A name that no file can have does not exist."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False
