"""One process at a time in a folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memtrain.errors import ConfigurationError
from memtrain.files.lock import locked

SECOND = """
import sys
from pathlib import Path
from memtrain.files.lock import locked
with locked(Path(sys.argv[1]), doing="second"):
    print("held")
"""


def test_a_second_process_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    def second() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", SECOND, str(tmp_path)], capture_output=True, text=True)

    with locked(tmp_path, doing="first"):
        refused = second()
        assert refused.returncode and f"Another process writes to {tmp_path}: first, process" in refused.stderr
    assert second().stdout.strip() == "held"


def test_a_lock_within_one_process(tmp_path: Path) -> None:
    with (
        locked(tmp_path, doing="first"),
        pytest.raises(ConfigurationError, match="one process at a time"),
        locked(tmp_path, doing="second"),
    ):
        pass


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_no_file_is_no_lock(tmp_path: Path, kind: str) -> None:
    if kind == "link":
        (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        (tmp_path / ".lock").mkdir()
    else:
        os.mkfifo(tmp_path / ".lock")
    with pytest.raises(ConfigurationError, match="cannot be held as a lock"), locked(tmp_path, doing="first"):
        pass
    assert not (tmp_path / "elsewhere").exists()
