"""The samples of one tar shard as they come: read once from beginning to end, not unpacked and not decoded.

A sample is a run of neighboring files with one base name, as WebDataset writes them: an image, and its caption in
`.txt` or `.json`. The rules are those of :mod:`memtrain.data.webdataset`. Random access finds errors before training. A
stream finds them as samples come: a sample that cannot be used carries its `problem`. A shard that cannot be read
further is read again from its beginning, :data:`TRIES` times in all, and then raises.

A shard is whole when it ends in a block of zeros and its command, if there is one, ends without an error. Cannot: bring
together files of one sample that lie apart; such samples are problems. The reader waits for a source that stands still:
give a command a time limit of its own (`curl --max-time`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from webdataset.tariterators import base_plus_ext

from memtrain.data.sample_texts import problems
from memtrain.data.shard_files import IMAGE_EXTENSIONS, MOST_BYTES
from memtrain.data.shard_urls import opened_shard, shard_name
from memtrain.data.source import Sample
from memtrain.errors import DataError

log = logging.getLogger(__name__)
TRIES = 4
"""The number of times that a shard is read at most."""
WAIT = 1.0
"""The seconds before a shard is read again; twice as many after each time."""
MOST_IMAGE_BYTES = 2**29
"""The largest size of an image in a shard in bytes."""
_BLOCK = 512
_TAIL = 2**16


@dataclass(frozen=True)
class Raw:
    """A sample that is not decoded.

    Attributes:
        key: the name of the sample.
        caption: the text of the sample.
        content: the content of the image file.
        shard: the shard of the sample.
        problem: the reason why the sample cannot be used; empty for a usable one.
    """

    key: str
    caption: str = ""
    content: bytes = b""
    shard: str = ""
    problem: str = ""


class _Tail:
    """A file that remembers how much of it was read, and the end of the part that was read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.total, self.end = file, 0, b""

    def read(self, size: int) -> bytes:
        found = self.file.read(size)
        self.total += len(found)
        self.end = (self.end + found)[-_TAIL:]
        return found

    def ends_at(self, offset: int) -> bool:
        """Return whether a block of zeros is at an offset."""
        begin = offset - (self.total - len(self.end))
        block = self.end[begin : begin + _BLOCK] if begin >= 0 else b""
        return len(block) == _BLOCK and not any(block)


def shard_samples(url: str, *, keys: str = "name") -> Iterator[Raw]:
    """Yield the samples of a shard, in its order. After a read error, reading starts again at the place of the error.

    Args:
        url: the address of the shard.
        keys: the rule for keys: `name` for base names, `shard` for base names after the name of the shard.

    Raises:
        DataError: if the shard cannot be read to its end.
    """
    given, name = 0, shard_name(url)
    for turn in range(TRIES):
        if turn:
            time.sleep(WAIT * 2 ** (turn - 1))
        try:
            for number, raw in enumerate(_read_once(url, name, keys=keys)):
                if number >= given:
                    given += 1
                    yield raw
        except (OSError, tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
            said = _said(error, url, name)
            if turn == TRIES - 1 or isinstance(error, FileNotFoundError):
                raise DataError(
                    f"The shard {name} cannot be read beyond its first {given} samples: {said}",
                    expected="a whole uncompressed tar that can be read",
                    remedy="repair or remove the shard, or leave it out (--data.init_args.broken skip)",
                ) from error
            log.warning("The shard %s is read again from sample %d on: %s", name, given, said)
        else:
            return


def _said(error: Exception, url: str, name: str) -> str:
    """Return the text of an error without the address or command, which may hold secrets."""
    text = " ".join(str(error).split())
    if (ended := re.search(r"\): exit (-?\d+) \(", text)) is not None:  # a pipe's error holds its whole command
        return f"its command ended with exit {ended[1]}"
    return text.replace(url, name)[:300] or type(error).__name__


def _read_once(url: str, name: str, *, keys: str) -> Iterator[Raw]:
    with contextlib.ExitStack() as stack:
        file = opened_shard(url)
        # An early stop ends the command too, so its exit status then says nothing.
        closing = stack.enter_context(contextlib.closing(_Closing(file)))
        tail = _Tail(file)
        met: set[str] = set()
        with tarfile.open(fileobj=tail, mode="r|") as tar:  # type: ignore[call-overload]
            for key, files in _groups(tar):
                raw = _sample(key, files, name, again=key in met)
                met.add(key)
                if raw is not None:
                    yield raw if keys == "name" else _renamed(raw, name)
            if not tail.ends_at(tar.offset):
                raise tarfile.ReadError(f"at byte {tar.offset} there is neither a file nor the end of the tar")
        while tail.read(2**20):
            pass
        closing.whole()


class _Closing:
    """Closes a file: with its errors after reading to the end, without them otherwise."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def whole(self) -> None:
        """Close the file, and check how the command ended."""
        self.file.close()
        status = getattr(self.file, "status", None)
        if status:
            raise OSError(f"the command ended with status {status}")

    def close(self) -> None:
        """Close the file after an error or an early stop."""
        with contextlib.suppress(OSError):
            self.file.close()


def _groups(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes | str]]]:
    """Yield the key and the files of each sample: the content of a file, or the reason why it is not read."""
    current: tuple[str, dict[str, bytes | str]] | None = None
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]
        key, extension = base_plus_ext(member.name)
        hidden = any(part == "__MACOSX" or (part[:1] == "." and part.strip(".")) for part in member.name.split("/"))
        if member.isdir() or hidden or not key or not extension:
            continue
        if current is None or key != current[0]:
            if current is not None:
                yield current
            current = (key, {})
        extension = extension.lower()
        if extension in current[1]:
            current[1][extension] = "it is there twice"
        elif not member.isreg() or member.issparse():
            current[1][extension] = "it is a link, a device or a sparse file"
        else:
            current[1][extension] = _content(tar, member, extension)
    if current is not None:
        yield current


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> bytes | str:
    most = MOST_BYTES if extension in ("txt", "json") else MOST_IMAGE_BYTES
    if extension not in ("txt", "json") and extension not in IMAGE_EXTENSIONS:
        return "it is not read"
    if member.size > most:
        return f"it has {member.size} bytes, more than {most}"
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def _sample(key: str, files: dict[str, bytes | str], shard: str, *, again: bool) -> Raw | None:
    """Return a sample; None for a sample that img2dataset lists and could not download."""
    extension = next((one for one in IMAGE_EXTENSIONS if one in files), None)
    image = files[extension] if extension is not None else f"there is no image, only {sorted(files)!s:.200}"
    texts: list[str] = []
    problem = "its key is there twice, or its files lie apart" if again else ""
    try:
        row = _row(files)
        gap = isinstance(row.get("status"), str)
        texts = _captions(files, row)
        if gap and (extension is None or not any(text.strip() for text in texts)):
            return None
    except ValueError as error:
        problem = problem or f"its caption cannot be read: {error}"
    if isinstance(image, str):
        problem, image = problem or (image if extension is None else f"its .{extension}: {image}"), b""
    if key.startswith("/") or ".." in key.split("/"):
        problem = problem or "its name is absolute or leads out of a folder"
    sample = Sample.of(key, texts) if texts else Sample(key, "")
    problem = problem or next((f"it has {found}" for found in problems(sample)), "")
    problem = problem or ("" if sample.caption else "it has no caption")
    return Raw(key[:4096], sample.caption, b"" if problem else image, shard, problem)


def _row(files: dict[str, bytes | str]) -> dict[str, Any]:
    """Read a .json file; an empty dict if it is not an object."""
    content = files.get("json", b"{}")
    if isinstance(content, str):
        raise ValueError(content)
    try:
        row = json.loads(content, parse_constant=lambda name: None)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return row if isinstance(row, dict) else {}


def _captions(files: dict[str, bytes | str], row: dict[str, Any]) -> list[str]:
    captions: list[object] = []
    if "txt" in files:
        text = files["txt"]
        if isinstance(text, str):
            raise ValueError(text)
        captions.append(text.decode("utf-8-sig"))
    elif row.get("caption") is not None:
        captions.append(row["caption"])
    several = row.get("captions", [])
    if not isinstance(several, list) or not all(isinstance(one, str) for one in [*captions, *several]):
        raise ValueError("it is not a text")
    return [str(one) for one in [*captions, *several]]


def _renamed(raw: Raw, shard: str) -> Raw:
    stem = Path(shard.rsplit("/", 1)[-1]).name.removesuffix(".tar")
    return Raw(f"{stem}/{raw.key}", raw.caption, raw.content, raw.shard, raw.problem)
