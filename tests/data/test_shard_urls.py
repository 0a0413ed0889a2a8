"""Which shards a path names, what may be opened, and that a command needs the user's word."""

from pathlib import Path

import pytest

from memtrain.cli import trusted
from memtrain.data import shard_urls as module
from memtrain.data.shard_urls import (
    in_fixed_order,
    require_local_shards,
    require_openers,
    shard_name,
    shard_urls,
    shards_mark,
)
from memtrain.errors import ConfigurationError, DataError


@pytest.fixture(autouse=True)
def nobody_has_spoken(monkeypatch):
    monkeypatch.setattr(module, "_trusted", [])


def test_patterns_folders_and_lists(tmp_path):
    assert shard_urls("a/{00..02}.tar::https://host/b.tar") == [
        "a/00.tar",
        "a/01.tar",
        "a/02.tar",
        "https://host/b.tar",
    ]
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    assert shard_urls(str(tmp_path)) == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    require_local_shards([*shard_urls(str(tmp_path)), "https://host/b.tar"])
    with pytest.raises(DataError, match="1 of 3 shards do not exist"):
        require_local_shards([*shard_urls(str(tmp_path)), "x.tar"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="names no shards"):
        shard_urls(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    "path", ["-", "unknown://a", "PIPE:id", "pip{e,f}:id", " pipe:id", "data:abc", "a.tar::exec:id", "javascript:1", ""]
)
def test_what_is_not_known_is_refused(path):
    with pytest.raises(ConfigurationError):
        shard_urls(path)


@pytest.mark.parametrize("path", ["pipe:touch x", "a.tar::pipe:touch x", "pi{pe:touch x,pe:id}"])
def test_commands_need_the_word_of_the_user(path):
    with pytest.raises(ConfigurationError, match="--trust pipe on the command line, or pass allow_pipes"):
        shard_urls(path)
    assert any(url.startswith("pipe:touch x") for url in shard_urls(path, allow_pipes=True))


def test_on_the_command_line_no_file_can_say_it(monkeypatch):
    monkeypatch.setattr(trusted, "_trusted", [])
    try:
        trusted.guard([])
        with pytest.raises(ConfigurationError, match=r"--trust pipe on the command line$"):
            shard_urls("pipe:id", allow_pipes=True)
        trusted.guard(["pipe"])
        assert shard_urls("pipe:id") == ["pipe:id"]
        assert trusted.trust_words() == ["--trust", "pipe"]
    finally:
        trusted.guard([])


def test_what_opens_an_address_has_to_be_there(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda program: None if program == "gsutil" else program)
    require_openers(["a.tar", "pipe:id", "https://host/a.tar", "memory://a.tar"])
    with pytest.raises(ConfigurationError, match="gs: need the program gsutil, which is not installed"):
        require_openers(["a.tar", "gs://bucket/a.tar"])

    def missing(scheme):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    with pytest.raises(ConfigurationError, match="Install s3fs"):
        require_openers(["s3://bucket/a.tar"])


def test_names_hold_no_secrets():
    assert shard_name("https://me:word@host/a/b.tar?token=x#y") == "https://host/a/b.tar"
    assert shard_name("pipe:curl -H 'Bearer x' https://me:w@host/b.tar?t=x") == "pipe:curl https://host/b.tar"
    assert shard_name("pipe:") == "pipe:"
    assert shard_name("a/b.tar") == "a/b.tar"


def test_a_list_is_known_again_elsewhere():
    here, there = ["a/0.tar", "a/1.tar"], ["https://host/0.tar?key=1", "https://host/1.tar?key=2"]
    assert shards_mark(here) == shards_mark(there) != shards_mark(here[::-1])
    assert [in_fixed_order(url) for url in ("a.tar", "https://host/a.tar", "pipe:id")] == [True, True, False]
    assert Path(here[0]).name == "0.tar"
