r"""The files of a data folder: which are images, which names of a table lie in it, and what about links.

Links that somebody put into a data folder are followed, to files and to folders, wherever they lead: the cache of the
Hugging Face Hub consists of them (`snapshots/…/a.png` is a link to `blobs/…`), and people collect folders by links.
Whoever can make a link in the folder could have put the file there. A *name inside of a file* is another matter: a
table of a stranger (`metadata.jsonl`) must not reach what its reader never put into the folder, so absolute names and
names that lead out by `..` are refused, and `..` is taken out of a name before a link is followed. What a link leads to
is decoded as an image or read as a caption, and never written to. Links that lead out of the folder are counted.

Names that are spelt otherwise than on the disk are found where only one file can be meant: `\` for `/` (written on
Windows), and another Unicode normal form (macOS writes `e` and an accent where others write `é`).
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
"""How a file name ends that is the mask of the image of the same name."""


def files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and those below it, without hidden ones; each folder once, links followed.

    Raises:
        DataError: if a folder cannot be read, or a file's name is not UTF-8.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"The folder {error.filename!r} cannot be read: {error.strerror}",
            expected="folders that may be read",
            remedy="change its permissions, or move it elsewhere",
        ) from error

    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        place = os.stat(root)
        if (place.st_dev, place.st_ino) in seen:  # a link to a folder that was seen, maybe to its own parent
            folders[:] = []
            continue
        seen.add((place.st_dev, place.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(root, require_text(name, f"A file name in {root}"))


class Listed:
    """Which files are there, by one look into each folder: on a network's disk, asking for each takes its time.

    What is a link, or is not in the list under its own name, is asked for alone.
    """

    def __init__(self) -> None:
        self._plain: dict[str, set[str]] = {}

    def has(self, path: Path) -> bool:
        """Whether there is a file, links followed."""
        return self.is_plain(path) or is_file(path)

    def is_plain(self, path: Path) -> bool:
        """Whether it is a file, and no link."""
        parent, name = os.path.split(path)
        if parent not in self._plain:
            self._plain[parent] = _plain_files(parent)
        return name in self._plain[parent]


def _plain_files(folder: str) -> set[str]:
    """Names of the files in a folder that are no links; none where there is no such folder."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except (OSError, ValueError):
        return set()


def folder_images(folder: Path, *, quiet: bool = False, listed: Listed | None = None) -> list[Path]:
    """What is called like an image in a folder and those below it, sorted, without hidden files and masks.

    An image of a kind that is not decoded here (a.psd, a.heic) is left out, and counted in a warning, where one that is
    lies beside it under the same name.

    Args:
        folder: to look through.
        quiet: without the warning.
        listed: which files are there, as far as that is known.

    Raises:
        DataError: if a folder cannot be read, or an image is a broken link, a pipe or a device.
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
            f"{len(odd)} image(s) in {folder} are links to nothing, or no files, first {odd[:3]}",
            expected="files",
            remedy="mend the links, or remove them",
        )
    decoded = {path.with_suffix("") for path in found if path.suffix.lower() in SUFFIXES}
    originals = [
        path for path in found if path.suffix.lower() in UNDECODED_SUFFIXES and path.with_suffix("") in decoded
    ]
    if originals and not quiet:
        log.warning(
            "%d file(s) of %s of kinds that are not decoded here are left out, because an image lies beside each, "
            "first %s",
            len(originals),
            folder,
            [str(path.relative_to(folder)) for path in originals[:3]],
        )
    left_out = set(originals)
    return [path for path in found if path not in left_out]


def require_decoded(folder: Path, images: Sequence[Path]) -> None:
    """Refuse images of kinds that are not decoded here.

    Raises:
        DataError: naming their kinds with counts.
    """
    wrong = [path for path in images if path.suffix.lower() in UNDECODED_SUFFIXES]
    if wrong:
        kinds = sorted({path.suffix.lower() for path in wrong})
        counts = ", ".join(f"{sum(path.suffix.lower() == kind for path in wrong)} {kind}" for kind in kinds)
        raise DataError(
            f"{len(wrong)} image(s) in {folder} are of kinds that are not decoded here ({counts}), first "
            f"{[str(path.relative_to(folder)) for path in wrong[:3]]}",
            expected=f"images that end in {', '.join(sorted(SUFFIXES))}",
            remedy="convert them, to PNG or JPEG for instance, or move them elsewhere",
        )


def tell_of_links(folder: Path, files: Sequence[Path], listed: Listed) -> None:
    """Count the files that lie elsewhere."""
    home = folder.resolve()
    if home.parent.name == "snapshots":  # of the Hub's cache, whose files are links to its blobs
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
            "%d of %d images of %s are links to files outside of it, first %s -> %s",
            len(outside),
            len(files),
            folder,
            outside[0].relative_to(folder),
            outside[0].resolve(),
        )


def named_file(folder: Path, name: object, where: str, listed: Listed | None = None) -> str:
    """The file that a table names, as a path relative to its folder, `.` and `..` taken out.

    Args:
        folder: of the table.
        name: what it says.
        where: which file says so, and in which line or field; for the error.
        listed: which files are there, as far as that is known.

    Raises:
        DataError: if it is no text, absolute, or leads out of the folder.
    """
    if not isinstance(name, str):
        raise DataError(f"{where} is no text but {name!r:.80}", expected="a file name", remedy="mend it")
    require_text(name, where)
    if len(name) > LONGEST_KEY:
        raise DataError(
            f"{where} names a file in {len(name)} characters: {name[:40]!r}...",
            expected=f"{LONGEST_KEY} characters at most",
            remedy="mend it",
        )
    plain = [posixpath.normpath(name)]
    if "\\" in name:
        plain.append(posixpath.normpath(plain[0].replace("\\", "/")))
    if any(one.startswith("/") or one == ".." or one.startswith("../") for one in plain):
        raise DataError(
            f"{where} points outside the folder: {name!r:.80}",
            expected="a name relative to the folder, of a file below it",
            remedy="move the file into the folder, or a link to it, and name that",
        )
    spelt = [form for one in plain for form in (one, *(unicodedata.normalize(kind, one) for kind in ("NFC", "NFD")))]
    there = is_file if listed is None else listed.has
    return next((one for one in spelt if there(folder / one)), plain[0])


def require_text(text: str, what: str) -> str:
    """A text that can be written down.

    Args:
        text: to look at.
        what: it is; for the error.

    Raises:
        DataError: if it holds a NUL, or is not UTF-8.
    """
    problem = "holds a NUL character" if "\0" in text else ""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        problem = "is not UTF-8"
    if problem:
        raise DataError(f"{what} {problem}: {text!a:.80}", expected="UTF-8 text", remedy="rename or mend it")
    return text


def is_file(path: Path) -> bool:
    """Whether there is a file, links followed; names that no file can have are none."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False
