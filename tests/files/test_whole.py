"""Files that are whole or not there."""

from __future__ import annotations

import ast
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memtrain.errors import DiskFullError, MemtrainError
from memtrain.files.whole import folder_whole, naming_full_disk, written_whole
from tests.conftest import ROOT


@contextmanager
def _full() -> Iterator[None]:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    yield


def test_a_file_that_could_not_be_finished_leaves_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("former")
    with pytest.raises(ValueError, match="halfway"), written_whole(path) as unfinished:
        unfinished.write_text("new")
        raise ValueError("halfway")
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_with_path_and_free_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a" / "results.json"
    said = r"results\.json could not be written: the disk is full"
    with pytest.raises(DiskFullError, match=said) as found, written_whole(path), _full():
        pass
    assert "bytes free" in str(found.value)
    assert isinstance(found.value, MemtrainError) and isinstance(found.value, OSError)
    assert "Remedy" in str(found.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_what_libraries_say_of_a_full_disk_is_understood(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(DiskFullError), naming_full_disk(tmp_path / "x"):
        raise error


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), naming_full_disk(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(RuntimeError, match="PytorchStreamWriter"), naming_full_disk(tmp_path / "x"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")


def test_a_limit_on_file_sizes_stops_in_one_line_and_keeps_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    path.write_bytes(b"former")
    code = (
        "import resource, signal, sys; from pathlib import Path; from memtrain.files.whole import written_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "with written_whole(Path(sys.argv[1])) as unfinished: unfinished.write_bytes(bytes(10**5))"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "DiskFullError" in ended.stderr and "a limit on file sizes" in ended.stderr
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_killed_while_it_writes_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("former")
    if (child := os.fork()) == 0:
        with written_whole(path) as unfinished:
            unfinished.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert path.read_text() == "former"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    with pytest.raises(ValueError, match="halfway"), folder_whole(folder) as unfinished:
        (unfinished / "part.bin").write_text("1")
        raise ValueError("halfway")
    assert not list(tmp_path.iterdir())
    for text in ("1", "2"):
        with folder_whole(folder) as unfinished:
            (unfinished / "unet").mkdir()
            (unfinished / "unet" / "part.bin").write_text(text)
            (unfinished / "model_index.json").write_text(text)
        assert (folder / "unet" / "part.bin").read_text() == (folder / "model_index.json").read_text() == text
    assert list(tmp_path.iterdir()) == [folder]


WRITING = {"write_text", "write_bytes", "savefig", "save_file", "savez", "write_table", "to_csv", "save"}
IN_MEMORY_OR_WHOLE = (
    *(
        "(buffer",
        "(file",
        "writer.write_table(",
        "self.pool.save(",
        "self.mask.save(",
        "statistics.save(",
        "threshold.save(",
    ),
    *("Localization.load(folder).save(", "save(arrays, metadata", "write_table(folder / 'memorization_statistics.csv'"),
)
"""Calls that write to memory, or whose own function is looked at here."""
HELD_OPEN = {"memtrain/files/lock.py", "memtrain/families/stored_arrays.py", "memtrain/data/broken.py"}
"""A lock, which holds nothing, arrays that are filled in place under an unfinished name, and a list that grows."""


def _opens_to_write(call: ast.Call) -> bool:
    mode = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    modes = [value.value for value in mode if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return any(set(mode) <= set("wax+bt") for mode in modes)


def test_no_result_is_written_in_place() -> None:
    """A kill would leave half a file where a whole one stood."""
    found = []
    for path in sorted((ROOT / "memtrain").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or name in HELD_OPEN:
                continue
            called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            text = ast.unparse(call)
            writes = (called in WRITING and call.args) or (called == "open" and _opens_to_write(call))
            if writes and "unfinished" not in text and not any(word in text for word in IN_MEMORY_OR_WHOLE):
                found.append(f"{name}:{call.lineno} {text[:100]}")
    assert not found, "write these by memtrain.files.whole.written_whole"
