"""Arrays in a file: what is written is what safetensors reads, and a spoilt file is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memtrain.errors import RecordError
from memtrain.families.stored_arrays import create_arrays, open_arrays

SHAPES = {
    "bytes": ("uint8", (5, 3)),
    "wide": ("int64", (5,)),
    "real": ("float32", (5, 7)),
    "size": ("int32", (5, 2)),
    "nothing": ("float32", (0, 4)),
}


def filled(path: Path) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    arrays = create_arrays(path, SHAPES)
    wanted = {name: numbers.integers(0, 200, shape).astype(kind) for name, (kind, shape) in SHAPES.items()}
    for name, array in arrays.items():
        for row in range(len(array)):
            array[row] = wanted[name][row]
        if isinstance(array, np.memmap):
            array.flush()
    return wanted


@pytest.mark.parametrize("read", [load_file, open_arrays])
def test_what_is_filled_in_is_read_again(tmp_path: Path, read) -> None:
    wanted = filled(tmp_path / "arrays.safetensors")
    found = read(tmp_path / "arrays.safetensors")
    assert set(found) == set(SHAPES)
    for name, (kind, shape) in SHAPES.items():
        assert (found[name].dtype, found[name].shape) == (np.dtype(kind), shape)
        assert (found[name] == wanted[name]).all()


def test_files_of_safetensors_are_opened(tmp_path: Path) -> None:
    wanted = {"one": np.arange(6, dtype=np.float32).reshape(2, 3), "two": np.arange(3, dtype=np.uint8)}
    save_file(wanted, tmp_path / "a.safetensors", metadata={"about": "x"})
    found = open_arrays(tmp_path / "a.safetensors")
    assert {name: array.tolist() for name, array in found.items()} == {name: a.tolist() for name, a in wanted.items()}


def test_changing_an_opened_array_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "arrays.safetensors"
    filled(path)
    before = path.read_bytes()
    open_arrays(path)["bytes"][:] = 7
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 40, None])
def test_a_spoilt_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "arrays.safetensors"
    filled(path)
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(RecordError, match="cannot be read"):
        open_arrays(path)
