"""Feeds every reader of files that somebody else wrote with broken ones, and says which end in anything but an answer.

With atheris (`pip install atheris`) inputs are guided by what they reach in memtrain's code; without it, hypothesis
changes the seeds at random. Each reader has a process of its own and an equal share of the time. A finding is an
exception that is no error of memtrain's, listed once for each place; a reader that takes more than 10 seconds for an
input is listed, too. Exit status 1 if there is a finding.

    python benchmarks/fuzz.py --minutes 10 --json benchmarks/fuzz.json
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from fuzz_targets import TARGETS, Target

ROOT = Path(__file__).resolve().parents[1]
SLOWEST = 10
"""Seconds for one input."""
LONGEST = 4096
"""Bytes of an input."""
SHOWN = 200
LIBRARIES = (
    "torch",
    "lightning.pytorch.cli",
    "diffusers",
    "transformers",
    "peft",
    "pyarrow.parquet",
    "safetensors.torch",
)
"""Slow modules, which are imported once; each process imports memtrain itself, which it watches."""


class Tally:
    """The answers of a reader so far, kept in a file because a fuzzer ends its process in its own way.

    Args:
        read: the reader.
        path: the path of the file.
    """

    def __init__(self, read: Callable[[bytes], object], path: Path) -> None:
        from memtrain.errors import MemtrainError

        self.read, self.path, self.refusal = read, path, MemtrainError
        self.executions, self.refused, self.slowest, self.due = 0, 0, 0.0, 0.0
        self.findings: dict[str, dict[str, str]] = {}

    def __call__(self, data: bytes) -> None:
        """Try an input."""
        self.executions += 1
        began = time.perf_counter()
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                self.read(data)
        except self.refusal:
            self.refused += 1
        except Exception as error:
            self._found(error, data)
        spent = time.perf_counter() - began
        if spent > SLOWEST:
            self._keep("slow", f"{spent:.0f} seconds", data)
        self.slowest = max(self.slowest, spent)
        if time.monotonic() > self.due:
            self.write()

    def _found(self, error: Exception, data: bytes) -> None:
        frames = [one for one in traceback.extract_tb(error.__traceback__) if "memtrain" in one.filename]
        last = frames[-1] if frames else None
        where = f"{Path(last.filename).relative_to(ROOT)}:{last.name}" if last else "unknown"
        self._keep(f"{type(error).__name__} in {where}", str(error)[:SHOWN], data)

    def _keep(self, what: str, said: str, data: bytes) -> None:
        if what not in self.findings:
            self.findings[what] = {"said": said, "input": base64.b64encode(data[:LONGEST]).decode()}
            self.write()

    def write(self) -> None:
        """Keep the figures."""
        self.due = time.monotonic() + 0.5
        figures = {
            "executions": self.executions,
            "refused": self.refused,
            "slowest_seconds": round(self.slowest, 3),
            "findings": self.findings,
        }
        self.path.write_text(json.dumps(figures), encoding="utf-8")


def guided(target: Target, seconds: float, path: Path) -> None:
    """Let atheris choose inputs by what they reach; ends the process."""
    import atheris

    # Memtrain alone is watched: what libraries do with an input is theirs.
    with atheris.instrument_imports(include=["memtrain"]):
        read = target.make()
    tally = Tally(read, path)
    corpus = path.parent / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
        tally(seed)
    options = [f"-max_total_time={max(int(seconds), 1)}", f"-max_len={LONGEST}", "-rss_limit_mb=8192", "-timeout=60"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], tally)
    atheris.Fuzz()


def unguided(target: Target, seconds: float, path: Path) -> None:
    """Let hypothesis change the seeds."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as some

    tally = Tally(target.make(), path)
    end = time.monotonic() + seconds
    edits = some.lists(some.tuples(some.integers(0, LONGEST), some.integers(0, 2), some.binary(max_size=8)), max_size=8)

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(some.sampled_from(target.seeds), edits)
    def tried(seed: bytes, changes: list[tuple[int, int, bytes]]) -> None:
        data = bytearray(seed)
        for place, taken, put in changes:
            place %= len(data) + 1
            data[place : place + taken] = put
        tally(bytes(data))

    while time.monotonic() < end:
        tried()
    tally.write()


def fuzz(target: Target, seconds: float, *, guide: bool) -> dict[str, Any]:
    """The figures of a reader, from a process of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place)
        path, log = folder / "figures.json", folder / "log"
        child = os.fork()
        if child == 0:
            _child(target, seconds, path, log, guide=guide)
        said = "" if _ended(child, seconds + 180) else "it did not end"
        said += log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"findings": {}}
        reached = re.findall(r"cov: (\d+)", said)
        tried = re.findall(r"^#(\d+)", said, re.MULTILINE)
        figures["edges"] = int(reached[-1]) if reached else None
        figures["executions"] = max([figures.get("executions", 0), *map(int, tried)])
        if not path.is_file() or re.search(r"ERROR: libFuzzer|did not end|Traceback", said):
            figures["findings"]["the process ended"] = {"said": said[-600:], "input": ""}
    return figures


def _child(target: Target, seconds: float, path: Path, log: Path, *, guide: bool) -> NoReturn:
    """Do the work of a separate process: its output goes to a file, and its files to a folder that is removed."""
    with log.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["HF_HUB_OFFLINE"] = "1"
    tempfile.tempdir = str(path.parent)
    os.chdir(path.parent)
    sys.argv = sys.argv[:1]
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    try:
        (guided if guide else unguided)(target, seconds, path)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def _ended(child: int, seconds: float) -> bool:
    """Wait for a process; one that does not end is ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="names of readers, as they are in the table")
    parser.add_argument("--unguided", action="store_true", help="hypothesis even where atheris is installed")
    asked = parser.parse_args()
    guide = not asked.unguided and find_spec("atheris") is not None
    chosen = [one for one in TARGETS if not asked.only or one.name in asked.only]
    print(f"{len(chosen)} readers, {'guided by atheris' if guide else 'changed at random by hypothesis'}")
    for name in LIBRARIES:
        import_module(name)
    figures = {}
    for target in chosen:
        found = figures[target.name] = fuzz(target, 60 * asked.minutes / len(chosen), guide=guide)
        edges = "" if found["edges"] is None else f"{found['edges']:>6,} edges"
        count = f"{found['executions']:>10,} executions {edges}{len(found['findings']):>4} findings"
        print(f"{target.name:<22}{count}", flush=True)
        for what, finding in found["findings"].items():
            print(f"    {what}: {finding['said']!r}", flush=True)
        total = sum(len(one["findings"]) for one in figures.values())
        tries = sum(one["executions"] for one in figures.values())
        report = {"guided": guide, "minutes": asked.minutes, "executions": tries, "findings": total, "readers": figures}
        if asked.json is not None:
            asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{tries:,} executions, {total} findings")
    sys.exit(1 if total else 0)


if __name__ == "__main__":
    main()
