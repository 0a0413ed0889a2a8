"""Headless Chromium over its own pipe (`--remote-debugging-pipe`): what a page does, asked with nothing but Python."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--disable-extensions", "--no-first-run", "--no-default-browser-check"),
)


class Page:
    """One tab.

    Attributes:
        events: what the browser reported, oldest first.
    """

    def __init__(self, to: FileIO, back: FileIO) -> None:
        self._to, self._back = to, back
        self._number, self._rest, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        found: dict[str, Any] = answer["result"]
        return found

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = self._back.read(1 << 16)
            assert piece, "the browser has ended"
            self._rest += piece
        one, _, self._rest = self._rest.partition(b"\0")
        read: dict[str, Any] = json.loads(one)
        return read

    def open(self, file: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a file at a width in CSS pixels."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self("Page.navigate", url=file.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def tab(self) -> None:
        """Press the tabulator."""
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are none of the two file descriptors that the browser is given."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20))
        os.close(end)
    return ends[0], ends[1]


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with an empty profile; the test is skipped where there is none."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    read_in, write_in = _pipe()
    read_out, write_out = _pipe()
    words = [chromium, *SWITCHES, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    # The browser reads from file descriptor 3 and answers at 4.
    command = f"exec {shlex.join(words)} 3<&{read_in} 4>&{write_out}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(["bash", "-c", command], pass_fds=(read_in, write_out), **quiet) as process:  # type: ignore[call-overload]
        os.close(read_in)
        os.close(write_out)
        try:
            with os.fdopen(write_in, "wb", buffering=0) as to, os.fdopen(read_out, "rb", buffering=0) as back:
                yield Page(to, back)
        finally:
            process.terminate()
