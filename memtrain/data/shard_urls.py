"""Where the shards of a stream are, and how each is opened.

Local tars, a folder of them, brace patterns, `pipe:COMMAND`, and addresses: `http`, `https`, `ftps`, `sftp`, `scp`,
`gs`, `htgs`, `hf` and `ais` as webdataset opens them (with the programs curl, gsutil and ais), `s3`, `az`, `abfs` and
`oss` by fsspec (with the packages s3fs, adlfs and ossfs). Several are joined by `::`.

`pipe:` runs a command of a shell, and a configuration is often somebody else's. So it is refused unless the user says
`--trust pipe` on the command line, which no file can say, or, without a command line of memtrain's, passes
`allow_pipes=True`. Commands and addresses are what the path says after its braces are expanded; nothing that is read
from data becomes a part of one.

In messages, lists and checkpoints a shard goes by a name without what may be secret: no user, password or query of an
address, and of a command its program and the word that names a tar.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.shipped import at_hand

PIPE = "pipe"
BY_WEBDATASET = ("http", "https", "ftps", "sftp", "scp", "gs", "htgs", "hf", "ais")
BY_FSSPEC = ("s3", "az", "abfs", "abfss", "oss", "memory")
TOLD = 3
"""Shards that an error names."""

_trusted: list[bool] = []
"""Whether the user of a command line trusts pipes; empty where none has spoken."""


def trust_pipes(trusted: bool | None) -> None:
    """Let this process run the commands of `pipe:` from now on, or not; None leaves it to `allow_pipes`."""
    _trusted[:] = [] if trusted is None else [trusted]


def scheme_of(url: str) -> str:
    """What stands before the colon of an address; empty for a local file."""
    return urlsplit(url).scheme


def shard_urls(path: str, *, allow_pipes: bool = False) -> list[str]:
    """The shards that a path names, in its order.

    Args:
        path: a folder of tars, or one or more names, patterns and addresses.
        allow_pipes: run commands, where no command line decides about that.

    Raises:
        ConfigurationError: if there are none, or one would be opened by something that is not known or not trusted.
    """
    path = at_hand(path)
    if Path(path).is_dir():
        urls = sorted(str(file) for file in Path(path).glob("*.tar"))
    else:
        try:
            urls = importlib.import_module("webdataset.shardlists").expand_urls(path)
        except ValueError as error:
            raise ConfigurationError(
                f"The shard pattern {path!r} cannot be expanded: {error}",
                expected="a pattern such as 'shards/{0000..0009}.tar'",
                remedy="mend the braces",
            ) from error
    if not urls or not all(url.strip() for url in urls):
        raise ConfigurationError(
            f"{path!r} names no shards",
            expected="a folder of .tar files, a .tar file, a pattern of them, an address, or pipe:COMMAND",
            remedy="check the path",
        )
    for url in urls:
        _require_known(url)
    if any(scheme_of(url) == PIPE for url in urls) and not (_trusted[0] if _trusted else allow_pipes):
        raise ConfigurationError(
            f"The path of the data runs a command of a shell: {path!r:.300}",
            expected="your word that it may, because a configuration can be somebody else's",
            remedy="read the command, then say --trust pipe on the command line"
            + ("" if _trusted else ", or allow_pipes"),
        )
    return urls


def _require_known(url: str) -> None:
    scheme = scheme_of(url)
    known = (PIPE, "file", *BY_WEBDATASET, *BY_FSSPEC)
    if url == "-" or (scheme and (scheme not in known or not url.startswith(f"{scheme}:"))):
        raise ConfigurationError(
            f"{url!r:.200} is no shard that can be opened",
            expected=f"a local file, or an address that begins with one of {', '.join(f'{one}:' for one in known[1:])}",
            remedy="correct it, or have a command write the tar: 'pipe:COMMAND'",
        )


def require_openers(urls: Sequence[str]) -> None:
    """Refuse addresses whose program or package is missing, before any is opened.

    Raises:
        ConfigurationError: naming it.
    """
    for scheme in sorted({scheme_of(url) for url in urls}):
        missing = ""
        if scheme in BY_WEBDATASET:
            program = {"gs": "gsutil", "ais": "ais"}.get(scheme, "curl")
            missing = "" if shutil.which(program) else f"the program {program}"
        elif scheme in BY_FSSPEC:
            try:
                importlib.import_module("fsspec").get_filesystem_class(scheme)
            except ImportError as error:
                missing = f"a package: {error}"
        if missing:
            raise ConfigurationError(
                f"Shards at {scheme}: need what is not installed: {missing}",
                expected="what opens such an address",
                remedy="install it, or have another program write the tars: 'pipe:COMMAND'",
            )


def require_local_shards(urls: Sequence[str]) -> None:
    """Refuse local shards that are not there, all at once.

    Raises:
        DataError: naming the first.
    """
    missing = [url for url in urls if not scheme_of(url) and not Path(url).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(urls)} shards do not exist, first {missing[:TOLD]}",
            expected="every shard of the path on disk",
            remedy="check the pattern's range, or say broken: skip",
        )


def in_fixed_order(url: str) -> bool:
    """Whether reading it again gives the same again, as far as that is known: what a command writes, it is not."""
    return scheme_of(url) != PIPE


def shard_name(url: str) -> str:
    """A name of a shard without secrets."""
    if scheme_of(url) == PIPE:
        words = url.partition(":")[2].split()
        tars = [_plain(word) for word in words if ".tar" in word]
        return " ".join([f"pipe:{words[0] if words else ''}", *tars[:1]])
    return _plain(url)


def _plain(url: str) -> str:
    parts = urlsplit(url)
    if not parts.scheme:
        return url
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def shards_mark(urls: Sequence[str]) -> str:
    """What tells one list of shards from another, wherever they lie."""
    names = "\n".join(shard_name(url).rsplit("/", 1)[-1] for url in urls)
    return f"{len(urls)} shards {hashlib.sha256(names.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def opened_shard(url: str) -> BinaryIO:
    """The bytes of a shard, from its beginning.

    Raises:
        OSError: if it cannot be opened, or the package that opens such an address is missing.
    """
    scheme = scheme_of(url)
    if scheme in BY_FSSPEC:
        fsspec: Any = importlib.import_module("fsspec")
        try:
            file: BinaryIO = fsspec.open(url, "rb").open()
        except ImportError as error:
            raise OSError(f"{scheme}: needs a package: {error}") from error
        return file
    if not scheme:
        return Path(url).open("rb")
    gopen: Any = importlib.import_module("webdataset").gopen
    opened: BinaryIO = (getattr(gopen, "gopen", gopen))(url)
    return opened
