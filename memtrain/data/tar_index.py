"""Which files a tar holds, and where: read once, and nothing is ever extracted.

| | |
|---|---|
| accepted | uncompressed tars (ustar, GNU, PAX) that end as tars end, with blocks of zeros |
| passed over | folders, and hidden files wherever they lie (`._a.jpg` and `__MACOSX`, as macOS writes them) |
| refused | a tar that is cut inside of a file or between two; further data behind its end, as `cat a.tar b.tar` makes
it; damaged headers; links, devices, pipes and sparse files; names that are absolute or hold `..`; a name twice |

What follows the first dot of a name is its extension, what comes before it the key of its sample, as WebDataset has it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from webdataset.tariterators import base_plus_ext

from memtrain.errors import DataError

Place = tuple[int, int]
"""Offset and size of a file in a tar."""
TOLD = 3
"""Names that an error lists."""


def index_tar(shard: Path) -> dict[str, dict[str, Place]]:
    """`key -> extension -> place` of the files in a tar, in its order.

    Args:
        shard: the tar.

    Raises:
        DataError: if it is refused, naming the file and the member.
    """
    index: dict[str, dict[str, Place]] = {}
    _into(index, shard)
    return index


def _into(index: dict[str, dict[str, Place]], shard: Path) -> None:
    for member in _members(shard):
        if any(part == "__MACOSX" or (part[:1] == "." and part.strip(".")) for part in member.name.split("/")):
            continue
        key, extension = base_plus_ext(member.name)
        if key is None or extension is None:  # hidden, or without an extension
            continue
        if key.startswith("/") or ".." in key.split("/"):
            raise DataError(
                f"{shard} holds a file named {member.name!a:.100}",
                expected="names relative to one folder, without `..`",
                remedy="write the shard again with other names",
            )
        files = index.setdefault(key, {})
        if extension.lower() in files:
            raise DataError(
                f"{member.name!r:.100} occurs twice in {shard}: key {key!r:.100} names more than one sample",
                expected="one key per sample",
                remedy="rename the samples",
            )
        files[extension.lower()] = (member.offset_data, member.size)


def index_what_is_whole(shard: Path) -> tuple[dict[str, dict[str, Place]], DataError | None]:
    """As :func:`index_tar`, of the files before the place at which a tar is cut or damaged, and what is wrong there."""
    index: dict[str, dict[str, Place]] = {}
    try:
        _into(index, shard)
    except DataError as error:
        end = shard.stat().st_size if shard.is_file() else 0
        # A file that is cut lies beyond the end in part.
        whole = {
            key: {extension: place for extension, place in files.items() if sum(place) <= end}
            for key, files in index.items()
        }
        return {key: files for key, files in whole.items() if files}, error
    return index, None


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar that is whole."""
    odd: list[str] = []
    end = 0
    try:
        with tarfile.open(shard, mode="r:") as tar:
            for member in tar:
                if member.offset < end or member.size < 0:
                    raise tarfile.ReadError(f"the header of {member.name!a:.100} leads back")
                end = member.offset_data + member.size
                if not member.isdir() and (not member.isreg() or member.issparse()):
                    odd.append(member.name)
                elif member.isreg():
                    yield member
            end = tar.offset
    except OSError as error:
        raise DataError(
            f"{shard} cannot be read: {error.strerror or error}",
            expected="a file that may be read",
            remedy="check its permissions and the disk",
        ) from error
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, MemoryError) as error:
        raise DataError(
            f"{shard} cannot be read as an uncompressed tar: {' '.join(str(error).split()):.200}",
            expected="a WebDataset shard",
            remedy="copy or write the shard again",
        ) from error
    if odd:
        raise DataError(
            f"{len(odd)} member(s) of {shard} are links, devices or sparse files, first "
            f"[{', '.join(f'{name[:80]!a}' for name in odd[:TOLD])}]",
            expected="plain files",
            remedy="write the shard again, with `tar --dereference --hard-dereference`",
        )
    _require_end(shard, end)


def _require_end(shard: Path, end: int) -> None:
    """Refuse a tar that does not end in zeros where its members end.

    A tar that was cut between two files looks like a whole one but for this.
    """
    with shard.open("rb") as file:
        file.seek(end)
        rest = file.read(512)
        whole = len(rest) == 512 and not any(rest)
        while whole and (rest := file.read(2**20)):
            if any(rest):
                raise DataError(
                    f"{shard} goes on behind its end: there are further data after byte {end}",
                    expected="one tar in one file",
                    remedy="join tars with `tar --concatenate`, or keep them as files of their own",
                )
    if not whole:
        raise DataError(
            f"{shard} is cut short or damaged: at byte {end} there is neither a file nor the end of the tar",
            expected="a whole tar, which ends in blocks of zeros",
            remedy="copy or download the shard again",
        )
