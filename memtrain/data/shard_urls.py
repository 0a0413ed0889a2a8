"""The addresses of a stream's shards, and how each is opened.

The path may name local tars, a folder of tars, brace patterns, `pipe:COMMAND`, and addresses. webdataset opens `http`,
`https`, `ftps`, `sftp`, `scp`, `gs`, `htgs`, `hf` and `ais` (with the programs curl, gsutil and ais). fsspec opens
`s3`, `az`, `abfs` and `oss` (with the packages s3fs, adlfs and ossfs). Several addresses are joined by `::`.

`pipe:` runs a command of a shell, and many configurations come from other people. So it is refused unless the user
gives `--trust pipe` on the command line, which no file can do. A script without memtrain's command line passes
`allow_pipes=True`. Commands and addresses come from the path alone, after its braces are expanded. Nothing that is read
from data becomes a part of them.

In messages, lists and checkpoints a shard has a name without secrets: without the user, the password and the query of
an address. The name of a command is its program and the word that names a tar.
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
"""The number of shards that an error names."""

_trusted: list[bool] = []
"""Whether the user of a command line trusts pipes; empty if no command line has decided."""


def trust_pipes(trusted: bool | None) -> None:
    """Allow or forbid the commands of `pipe:` in this process from now on; None leaves it to `allow_pipes`."""
    _trusted[:] = [] if trusted is None else [trusted]


def scheme_of(url: str) -> str:
    """Return the part of an address before the colon; empty for a local file."""
    return urlsplit(url).scheme


def shard_urls(path: str, *, allow_pipes: bool = False) -> list[str]:
    """Return the shards that a path names, in its order.

    Args:
        path: a folder of tars, or one or more names, patterns and addresses.
        allow_pipes: whether to run commands if no command line decides about that.

    Raises:
        ConfigurationError: if the path names no shard, or if a shard needs an unknown or untrusted program.
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
                remedy="correct the braces",
            ) from error
    if not urls or not all(url.strip() for url in urls):
        raise ConfigurationError(
            f"{path!r} names no shards",
            expected="a folder of .tar files, a .tar file, a pattern of them, an address, or pipe:COMMAND",
            remedy="check --data.init_args.path",
        )
    for url in urls:
        _require_known(url)
    if any(scheme_of(url) == PIPE for url in urls) and not (_trusted[0] if _trusted else allow_pipes):
        raise ConfigurationError(
            f"The path of the data runs a command of a shell: {path!r:.300}",
            expected="your permission, because a configuration can be somebody else's",
            remedy="read the command, then add --trust pipe on the command line"
            + ("" if _trusted else ", or pass allow_pipes=True"),
        )
    return urls


def _require_known(url: str) -> None:
    scheme = scheme_of(url)
    known = (PIPE, "file", *BY_WEBDATASET, *BY_FSSPEC)
    if url == "-" or (scheme and (scheme not in known or not url.startswith(f"{scheme}:"))):
        raise ConfigurationError(
            f"{url!r:.200} is not a shard that can be opened",
            expected=f"a local file, or an address that begins with one of {', '.join(f'{one}:' for one in known[1:])}",
            remedy="correct the address, or let a command write the tar: 'pipe:COMMAND'",
        )


def require_openers(urls: Sequence[str]) -> None:
    """Refuse addresses whose program or package is missing, before any is opened.

    Raises:
        ConfigurationError: with the missing program or package.
    """
    for scheme in sorted({scheme_of(url) for url in urls}):
        missing = ""
        if scheme in BY_WEBDATASET:
            program = {"gs": "gsutil", "ais": "ais"}.get(scheme, "curl")
            missing = "" if shutil.which(program) else f"the program {program}, which is not installed"
        elif scheme in BY_FSSPEC:
            try:
                importlib.import_module("fsspec").get_filesystem_class(scheme)
            except ImportError as error:
                missing = f"a package that is not installed ({error})"
        if missing:
            raise ConfigurationError(
                f"Shards at {scheme}: need {missing}",
                expected="a program or package that opens such an address",
                remedy="install it, or let another program write the tars: 'pipe:COMMAND'",
            )


def require_local_shards(urls: Sequence[str]) -> None:
    """Refuse local shards that do not exist, all at once.

    Raises:
        DataError: with the first missing shards.
    """
    missing = [url for url in urls if not scheme_of(url) and not Path(url).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(urls)} shards do not exist, first {missing[:TOLD]}",
            expected="every shard of the path on disk",
            remedy="correct the range of the pattern, or leave missing shards out (--data.init_args.broken skip)",
        )


def in_fixed_order(url: str) -> bool:
    """Return whether a second read gives the same data; False for a command, whose output is not known."""
    return scheme_of(url) != PIPE


def shard_name(url: str) -> str:
    """Return a name of a shard without secrets."""
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
    """Return a mark that tells one list of shards from another, wherever they lie."""
    names = "\n".join(shard_name(url).rsplit("/", 1)[-1] for url in urls)
    return f"{len(urls)} shards {hashlib.sha256(names.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def opened_shard(url: str) -> BinaryIO:
    """Open the bytes of a shard, from its beginning.

    Raises:
        OSError: if it cannot be opened, or if the package for such an address is missing.
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
