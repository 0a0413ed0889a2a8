"""Folders of data that could be read in two ways, or only in part. Such folders are refused.

| content | reason for the refusal |
|---|---|
| shards (.tar), and images or a table | one of both would be trained on, and the other ignored |
| shards in folders below, alone or in addition to others | only the shards of the folder itself are read |
| a table (metadata.jsonl, metadata.csv) in a folder below, and none at the top | its captions would be ignored |
| metadata.parquet and no other table, or .json files beside images without a text file | captions that are not read |
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from memtrain.data.folder_files import files_below
from memtrain.errors import DataError
from memtrain.files.pictures import SUFFIXES

log = logging.getLogger(__name__)
TABLES = ("metadata.jsonl", "metadata.csv")
TEXTS = (".txt", ".caption")


PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".zip", ".7z", ".rar")
"""Endings of the names of archives that are not read."""


def packed(path: Path) -> str:
    """Return a hint for a path that no source reads."""
    if path.suffix.lower() in SUFFIXES:
        return "; put a single image into a folder"
    if path.name.lower().endswith(PACKED):
        return "; unpack compressed files first (gunzip, zstd -d, unzip)"
    return ""


def require_one_kind(path: str, *, captioned: bool = False) -> None:
    """Refuse a folder if a part of it would be ignored.

    Args:
        path: the path of the data; anything but a folder is accepted.
        captioned: whether images without a caption already have one. If so, .json files only cause a warning.

    Raises:
        DataError: with the content of the folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    files = list(files_below(folder))
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    shards = [file for file in files if file.suffix == ".tar"]
    tables = [file for file in files if file.name in TABLES]
    here = [file for file in shards if file.parent == folder]
    if shards and (images or tables):
        rest = f"{len(images)} image(s)" if images else f"the table {tables[0].relative_to(folder)}"
        raise _refused(folder, f"holds {len(shards)} shard(s) and {rest}", "move one of both to another folder")
    if shards and len(here) < len(shards):
        below = _first(folder, [file for file in shards if file.parent != folder])
        remedy = "name a folder of shards, or a pattern such as 'shards/{00..07}/{0000..0009}.tar'"
        raise _refused(folder, f"holds shards in folders below it, {below}", remedy)
    top = [file for file in tables if file.parent == folder]
    if images and tables and not top:
        remedy = "name that folder, or put one table with the paths of all images at the top"
        raise _refused(folder, f"holds a table in a folder below it, {_first(folder, tables)}", remedy)
    if images and not tables and (folder / "metadata.parquet").is_file():
        remedy = "write it as metadata.jsonl, or load the folder as a data set (`datasets:` and its path)"
        raise _refused(folder, "holds metadata.parquet, which is not read", remedy)
    if not top:
        named = {file.with_suffix("") for file in files if file.suffix.lower() in TEXTS}
        described = {file.with_suffix("") for file in files if file.suffix.lower() == ".json"}
        unread = [image for image in images if image.with_suffix("") in described - named]
        if unread:
            remedy = "write the captions into text files (a.txt for a.png) or a metadata.jsonl"
            what = f"holds {len(unread)} image(s) with a .json file beside them, which is not read"
            if not captioned:
                raise _refused(folder, f"{what}, {_first(folder, unread)}", remedy)
            log.warning("%s %s, %s", folder, what, _first(folder, unread))


def _first(folder: Path, files: Sequence[Path]) -> str:
    return f"first {str(min(files).relative_to(folder))[:80]!a}"


def _refused(folder: Path, what: str, remedy: str) -> DataError:
    return DataError(f"{folder} {what}", expected="data of one kind, all of which is read", remedy=remedy)
