"""Which files a tar holds: whole ones alone."""

import io
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.data.tar_index import index_tar
from memtrain.errors import DataError

FILES = {
    f"{number:02}.{kind}": bytes([65 + number]) * size
    for number in range(3)
    for kind, size in (("jpg", 700), ("txt", 9))
}


def made(files, **options):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


WHOLE = made(FILES)
END = WHOLE.rindex(b"C" * 9) + 512
"""Where the last file ends."""


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return tmp_path_factory.mktemp("tars") / "shard.tar"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_a_tar_that_is_cut_anywhere_is_refused_unless_only_its_padding_is_gone(shard, length):
    shard.write_bytes(WHOLE[:length])
    if length >= END + 512:
        assert sorted(index_tar(shard)) == ["00", "01", "02"]
    else:
        with pytest.raises(DataError, match=r"shard\.tar"):
            index_tar(shard)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, END - 1), st.integers(1, 255))
def test_a_byte_that_changed_is_refused_or_harms_one_file(shard, place, change):
    content = bytearray(WHOLE)
    content[place] ^= change
    shard.write_bytes(content)
    try:
        index = index_tar(shard)
    except DataError as error:
        assert "shard.tar" in error.problem  # noqa: PT017
        return
    assert sum(len(files) for files in index.values()) >= len(FILES) - 1


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read(shard, format):
    shard.write_bytes(made({"a/" + "long" * 20 + ".png": b"x", "ü.png": b"y"}, format=format))
    assert {key: list(files) for key, files in index_tar(shard).items()} == {"a/" + "long" * 20: ["png"], "ü": ["png"]}


def test_what_the_program_tar_makes_and_joins(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    first, second = sorted(FILES)[:2], sorted(FILES)[2:]
    for name, files in (("shard.tar", first), ("b.tar", second)):
        subprocess.run(["tar", "cf", name, *files], cwd=tmp_path, check=True)
    subprocess.run(["tar", "--concatenate", "-f", "shard.tar", "b.tar"], cwd=tmp_path, check=True)
    assert sorted(index_tar(tmp_path / "shard.tar")) == ["00", "01", "02"]
    (tmp_path / "c.tar").write_bytes((tmp_path / "b.tar").read_bytes() * 2)
    with pytest.raises(DataError, match="goes on after its end"):
        index_tar(tmp_path / "c.tar")


def test_hidden_files_and_folders_are_passed_over(shard):
    shard.write_bytes(made({"._a.png": b"x", "a.png": b"x", "LICENSE": b"x"}))
    assert list(index_tar(shard)) == ["a"]
