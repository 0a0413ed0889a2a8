"""What strangers wrote is read while everything that it could set off is watched."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile")
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "shutil.rmtree")
NETWORK = ("socket.connect", "socket.getaddrinfo", "urllib.Request")
SENTINEL = "stranger18"
"""A module that leaves a mark when it is imported."""


class Watch:
    """Events of the interpreter that a stranger's file must not cause."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in PROGRAMS or event in NETWORK:
            self.seen.append(f"{event} {given[:2]!r:.200}")
        elif event == "import" and str(given[0]).split(".")[0] == SENTINEL:
            self.seen.append(f"import of {given[0]}")
        elif (
            event == "open" and isinstance(given[0], str | bytes) and _writes(given[1], given[2])
        ) or event in CHANGES:
            self._outside(event, given[0])

    def _outside(self, event: str, path: Any) -> None:
        assert self.folder is not None
        full = os.path.realpath(os.fsdecode(path)) if isinstance(path, str | bytes) else str(path)
        if not full.startswith(str(self.folder)) and full != os.devnull and "__pycache__" not in full:
            self.seen.append(f"{event} of {full}")


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


WATCH = Watch()
sys.addaudithook(WATCH)


@pytest.fixture(autouse=True)
def confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in; fails where anything was run, fetched, or written outside it."""
    folder = tmp_path.resolve()
    (folder / "modules").mkdir()
    mark = folder / "modules" / "imported"
    source = f"open({str(mark)!r}, 'w').close()\nclass Model: pass\nclass Thing: pass\ndef call(*a, **k): pass\n"
    (folder / "modules" / f"{SENTINEL}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder / "modules"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    # Offline, a look at the hub would be refused by its own library, and not be seen here.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    WATCH.seen, WATCH.folder = [], folder
    yield folder
    WATCH.folder = None
    sys.modules.pop(SENTINEL, None)
    assert not mark.exists(), "a stranger's module was imported"
    assert not WATCH.seen, "\n".join(WATCH.seen)
