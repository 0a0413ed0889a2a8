"""Tar shards as they come: whole ones, cut ones, failing commands, and samples that cannot be used."""

import http.server
import io
import json
import tarfile
import threading

import pytest

from memtrain.data import shard_reading
from memtrain.data.shard_reading import shard_samples
from memtrain.data.source import open_source
from memtrain.errors import DataError

from ..conftest import encoded_image


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(shard_reading, "WAIT", 0.0)


@pytest.fixture
def shard(write_shard):
    files = {}
    for number in range(5):
        files[f"p{number}.png"] = encoded_image(number)
        files[f"p{number}.txt"] = f"picture {number}".encode()
    return write_shard(files)


def keys(url):
    return [raw.key for raw in shard_samples(str(url))]


def test_a_stream_has_what_random_access_has(write_shard):
    files = [
        ("._a.png", b"resource fork"),
        ("a.png", encoded_image(1)),
        ("a.jpg", encoded_image(2, kind="JPEG")),
        ("a.txt", b"\xef\xbb\xbf a cat "),
        ("sub/b.JPG", encoded_image(3, kind="JPEG")),
        ("sub/b.json", json.dumps({"caption": "a dog", "captions": ["a hound"], "width": 1}).encode()),
        ("c.json", b'{"status": "failed_to_download", "caption": "gone", "width": NaN}'),
        ("d.png", encoded_image(4)),
        ("d.json", b'{"status": "success", "caption": ""}'),
    ]
    shard = write_shard(files)
    source = open_source(str(shard))
    raws = list(shard_samples(str(shard)))
    assert [(raw.key, raw.caption, raw.problem) for raw in raws] == [(s.key, s.caption, "") for s in source.samples]
    assert [raw.content for raw in raws] == [files[1][1], files[4][1]]
    named = list(shard_samples(str(shard), keys="shard"))
    assert [raw.key for raw in named] == ["shard/a", "shard/sub/b"]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([("a.txt", b"a cat")], "no image"),
        ([("a.png", b"x")], "no caption"),
        ([("a.png", b"x"), ("a.txt", b" ")], "no caption"),
        ([("a.png", b"x"), ("a.txt", b"\xff\xfe\x00")], "caption cannot be read"),
        ([("a.png", b"x"), ("a.json", b"{")], "caption cannot be read"),
        ([("a.png", b"x"), ("a.json", b'{"caption": 3}')], "caption cannot be read"),
        ([("a.png", b"x"), ("a.txt", b"nul \0")], "NUL"),
        ([("a.png", b"x"), ("a.png", b"x"), ("a.txt", b"a")], "there twice"),
        ([("../a.png", b"x"), ("../a.txt", b"a")], "leads out"),
        ([("/a.png", b"x"), ("/a.txt", b"a")], "absolute"),
    ],
)
def test_samples_that_cannot_be_used_say_why_and_the_next_is_read(write_shard, files, problem):
    shard = write_shard([*files, ("z.png", b"y"), ("z.txt", b"last")])
    first, last = shard_samples(str(shard))
    assert problem in first.problem and not first.content
    assert (last.key, last.problem) == ("z", "")


def test_files_that_lie_apart_links_and_giants(write_shard, monkeypatch):
    first, last = write_shard([("a.png", b"x"), ("b.png", b"x"), ("a.txt", b"a")]), None
    *_, last = shard_samples(str(first))
    assert "lie apart" in last.problem
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(first, "w") as tar:
        tar.addfile(link)
    assert "is a link" in next(shard_samples(str(first))).problem
    monkeypatch.setattr(shard_reading, "MOST_IMAGE_BYTES", 3)
    assert "more than 3" in next(shard_samples(str(write_shard({"a.png": b"xxxx", "a.txt": b"a"})))).problem


def test_a_shard_that_is_cut_gives_what_is_whole_and_then_fails(shard):
    content = shard.read_bytes()
    with tarfile.open(shard) as tar:
        ends = [member.offset for member in tar if member.name.endswith(".png")][1:]
    for place, whole in ((ends[1], 2), (ends[1] - 700, 1), (ends[1] + 100, 2), (700, 0)):
        shard.write_bytes(content[:place])
        found = []
        with pytest.raises(DataError, match=r"beyond its first \d samples[\s\S]*broken skip"):
            for raw in shard_samples(str(shard)):
                found.append(raw.key)
        assert found[:whole] == [f"p{number}" for number in range(whole)]
    shard.write_bytes(content[: ends[1]] + b"\1" * 512 + content[ends[1] + 512 :])
    with pytest.raises(DataError, match="neither a file nor the end"):
        keys(shard)


def test_a_shard_that_is_gone_or_no_tar(tmp_path):
    with pytest.raises(DataError, match="first 0 samples"):
        keys(tmp_path / "gone.tar")
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match="first 0 samples"):
        keys(tmp_path / "a.tar")


def test_a_command_that_fails_is_called_again_and_nothing_comes_twice(shard, tmp_path):
    """The first time it writes a part and ends with an error, the second time everything."""
    mark = tmp_path / "called"
    command = f"pipe:if [ -e {mark} ]; then cat {shard}; else touch {mark}; head -c 4000 {shard}; exit 3; fi"
    assert keys(command) == [f"p{number}" for number in range(5)]
    with pytest.raises(DataError, match=r"beyond its first 5 samples[\s\S]*(status|exit) 3"):
        keys(f"pipe:cat {shard}; exit 3")
    with pytest.raises(DataError) as error:
        keys(f"pipe:curl-that-is-not-there --header 'secret' {shard}")
    assert "secret" not in str(error.value)


def test_a_command_may_be_left_early(shard):
    samples = shard_samples(f"pipe:cat {shard}; exit 3")
    assert next(samples).key == "p0"
    samples.close()


def test_shards_over_http_and_fsspec(shard):
    import fsspec

    content, asked = shard.read_bytes(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if "shard" in self.path else 404)
            self.end_headers()
            self.wfile.write(content if len(asked) > 1 else content[:3000])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert len(keys(f"http://127.0.0.1:{server.server_port}/shard.tar?token=secret")) == 5
        assert len(asked) == 2, "the first time it was cut"
        with pytest.raises(DataError) as error:
            keys(f"http://127.0.0.1:{server.server_port}/no.tar?token=secret")
        server.shutdown()
    assert "secret" not in str(error.value)
    fsspec.filesystem("memory").pipe("/bucket/a.tar", content)
    assert len(keys("memory://bucket/a.tar")) == 5
    assert io.BytesIO(content).read(1)
