"""The index of a tar: its files and their places, read once. Nothing is ever extracted.

| treatment | content |
|---|---|
| accepted | uncompressed tars (ustar, GNU, PAX) that end in blocks of zeros |
| ignored | folders, and hidden files in any folder (`._a.jpg` and `__MACOSX`, as macOS writes them) |
| refused | the cases below |

A tar is refused if it is cut inside a file or between two files, or if data follow after its end, as in `cat a.tar
b.tar`. Damaged headers, links, devices, pipes and sparse files are refused, too. So are duplicate names, and names that
are absolute or hold `..`.

As in WebDataset, the part of a name after its first dot is the extension, and the part before it is the sample's key.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from webdataset.tariterators import base_plus_ext

from memtrain.errors import DataError

Place = tuple[int, int]
"""The offset and the size of a file in a tar."""
TOLD = 3
"""The number of names that an error lists."""


def index_tar(shard: Path) -> dict[str, dict[str, Place]]:
    """Return `key -> extension -> place` of the files in a tar, in its order.

    Args:
        shard: the path of the tar.

    Raises:
        DataError: if the tar is refused, with the file and the member.
    """
    index: dict[str, dict[str, Place]] = {}
    _into(index, shard)
    return index


def _into(index: dict[str, dict[str, Place]], shard: Path) -> None:
    for member in _members(shard):
        if any(part == "__MACOSX" or (part[:1] == "." and part.strip(".")) for part in member.name.split("/")):
            continue
        key, extension = base_plus_ext(member.name)
        if key is None or extension is None:  # a hidden file, or one without an extension
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
    """Index the files before the place of a cut or damage in a tar, and return them with the error at that place."""
    index: dict[str, dict[str, Place]] = {}
    try:
        _into(index, shard)
    except DataError as error:
        end = shard.stat().st_size if shard.is_file() else 0
        # A cut file lies partly behind the end.
        whole = {
            key: {extension: place for extension, place in files.items() if sum(place) <= end}
            for key, files in index.items()
        }
        return {key: files for key, files in whole.items() if files}, error
    return index, None


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the plain files of a whole tar."""
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
            expected="a file that you may read",
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

    Only this tells a whole tar from one that was cut between two files.
    """
    with shard.open("rb") as file:
        file.seek(end)
        rest = file.read(512)
        whole = len(rest) == 512 and not any(rest)
        while whole and (rest := file.read(2**20)):
            if any(rest):
                raise DataError(
                    f"{shard} goes on after its end: there are further data after byte {end}",
                    expected="one tar in one file",
                    remedy="join tars with `tar --concatenate`, or keep them as files of their own",
                )
    if not whole:
        raise DataError(
            f"{shard} is cut short or damaged: at byte {end} there is neither a file nor the end of the tar",
            expected="a whole tar, which ends in blocks of zeros",
            remedy="copy or download the shard again",
        )
