"""Training data that somebody else made, broken or hostile: one line that names the file, before training begins.

Each row of the tables below makes data in a folder and is refused when they are built, with an error of memtrain whose
first line names the file, the sample or the setting. Nothing is written, neither beside the data nor elsewhere.
"""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from memtrain.data.module import TextImageDataModule
from memtrain.errors import MemtrainError


def picture(kind="PNG", *, size=(16, 16), mode="RGB", **options):
    file = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(file, kind, **options)
    return file.getvalue()


GOOD = picture()


def png(*chunks, size=(2, 2)):
    content = b"\x89PNG\r\n\x1a\n"
    header = (b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    for kind, data in (header, *chunks, (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


def saved(array, kind):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def half(content):
    return content[: len(content) // 2]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file pop showpage\n%%EOF\n"
IMAGES = {
    "nothing": b"",
    "zeros": bytes(4096),
    "text": b"not an image",
    "page": b"<!doctype html><html><title>404</title></html>",
    "picture of vectors": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "PostScript": POSTSCRIPT,
    "PostScript for DOS": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(POSTSCRIPT)) + bytes(18) + POSTSCRIPT,
    "PDF": b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF",
    "pickle": pickle.dumps({"a": 1}),
    "program": b"\x7fELF" + bytes(60),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "JPEG XL": b"\xff\x0a" + bytes(30),
    "Photoshop": b"8BPS\0\1" + bytes(30),
    "icon": picture("ICO"),
    "TGA": picture("TGA"),
    "PCX": picture("PCX"),
    "DDS": picture("DDS"),
    "archive": gzip.compress(GOOD),
    "half a PNG": half(GOOD),
    "half a JPEG": half(picture("JPEG")),
    "half a WebP": half(picture("WEBP")),
    "half a GIF": half(picture("GIF")),
    "half a BMP": half(picture("BMP")),
    "half a TIFF": half(picture("TIFF")),
    "half an AVIF": half(picture("AVIF")),
    "half a JPEG 2000": half(picture("JPEG2000")),
    "half a PPM": half(picture("PPM")),
    "no pixels": png(),
    "no size": png((b"IDAT", zlib.compress(bytes(14))), size=(0, 0)),
    "bomb": png((b"IDAT", zlib.compress(bytes(10**6))), size=(60000, 60000)),
    "bomb beyond four gigapixels": png((b"IDAT", zlib.compress(bytes(99))), size=(2**31 - 1, 2**31 - 1)),
    "bomb of text": png((b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 10**6))), (b"IDAT", zlib.compress(bytes(14)))),
    "chunk too short": png((b"IDAT", zlib.compress(bytes(14))), (b"pHYs", b"x")),
    "numbers of 32 bits": saved(np.zeros((4, 4), np.float32), "TIFF"),
    "whole numbers of 32 bits": saved(np.zeros((4, 4), np.int32), "TIFF"),
}
"""Contents of a file that is named bad.png."""
ROWS = {
    "parent folder": {"file_name": "../outside.png", "text": "x"},
    "parent of a folder": {"file_name": "sub/../../outside.png", "text": "x"},
    "parent as Windows writes it": {"file_name": "..\\outside.png", "text": "x"},
    "absolute": {"file_name": "/etc/passwd", "text": "x"},
    "file twice absolute": {"file_name": "//etc/passwd", "text": "x"},
    "the folder": {"file_name": ".", "text": "x"},
    "address": {"file_name": "https://example.org/a.png", "text": "x"},
    "NUL in a name": {"file_name": "a\0.png", "text": "x"},
    "half a character in a name": {"file_name": "\ud800.png", "text": "x"},
    "line break in a name": {"file_name": "a\nb.png", "text": "x"},
    "long name": {"file_name": "a" * 10**6, "text": "x"},
    "number as a name": {"file_name": 7, "text": "x"},
    "no name": {"text": "x"},
    "list": ["00.png", "x"],
    "text": "00.png",
    "number": 1,
    "nothing": None,
    "no caption": {"file_name": "00.png"},
    "caption is nothing": {"file_name": "00.png", "text": None},
    "caption is a number": {"file_name": "00.png", "text": 1984},
    "caption is an object": {"file_name": "00.png", "text": {"en": "x"}},
    "caption is a list": {"file_name": "00.png", "text": ["x"]},
    "captions are a text": {"file_name": "00.png", "texts": "x"},
    "a caption of captions is a number": {"file_name": "00.png", "texts": ["x", 1]},
    "caption is empty": {"file_name": "00.png", "text": " "},
    "caption with NUL": {"file_name": "00.png", "text": "a\0b"},
    "caption with half a character": {"file_name": "00.png", "text": "a \udfff"},
    "caption of a megabyte": {"file_name": "00.png", "text": "word " * 200_000},
    "mask elsewhere": {"file_name": "00.png", "text": "x", "mask_file": "../outside.png"},
    "mask is a list": {"file_name": "00.png", "text": "x", "mask_file": ["00.png"]},
    "mask is not there": {"file_name": "00.png", "text": "x", "mask_file": "none.png"},
    "not a number": '{"file_name": "00.png", "text": "x", "score": NaN}',
    "nested": '{"file_name": "00.png", "text": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "unfinished": '{"file_name": "00.png", "text": "x"',
    "two in a line": '{"file_name": "00.png", "text": "x"}{}',
    "endless number": '{"file_name": "00.png", "text": "x", "n": ' + "9" * 10_000 + "}",
    "no JSON": "00.png, a caption",
    "twice": '{"file_name": "00.png", "text": "x"}\n{"file_name": "./00.png", "text": "y"}',
    "Latin 1": '{"file_name": "00.png", "text": "é"}'.encode("latin-1"),
    "UTF-16": '{"file_name": "00.png", "text": "x"}'.encode("utf-16"),
    "NUL": b'{"file_name": "00.png", "text": "x"}\0',
    "empty": b"",
}
"""What metadata.jsonl says of the image 00.png."""
TABLES = {
    "open quote": b'file_name,text\n00.png,"open',
    "too many values": b"file_name,text\n00.png,a,b",
    "too few values": b"file_name,text\n00.png",
    "no header": b"00.png,a caption\n",
    "column twice": b"file_name,text,text\n00.png,x,y\n",
    "long field": b"file_name,text\n00.png," + b"a" * 200_000,
    "NUL": b"file_name,text\n00.png,a\0b\n",
    "Latin 1": "file_name,text\n00.png,é\n".encode("latin-1"),
    "parent folder": b"file_name,text\n../outside.png,x\n",
}
"""What metadata.csv says of it."""
SIDECARS = {
    "Latin 1": {"00.txt": b"\xe9"},
    "NUL": {"00.txt": b"a\0b"},
    "blank": {"00.txt": b" \n "},
    "of megabytes": {"00.txt": b"a" * 3 * 2**20},
    "long": {"00.txt": b"a" * 100_000},
    "of another image": {"00.txt": b"x", "01.png": GOOD},
    "of a kind that is not decoded": {"00.txt": b"x", "01.heic": b"x", "01.txt": b"x"},
    "of a name that is not UTF-8": {"00.txt": b"x", os.fsdecode(b"\xff.png"): GOOD, os.fsdecode(b"\xff.txt"): b"x"},
}
"""Files beside the image 00.png."""


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tar(*members, format=tarfile.PAX_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as made:
        for info, content in members:
            made.addfile(info, io.BytesIO(content))
    return file.getvalue()


def sample(key="00", *, caption=b"x", **files):
    found = {"png": GOOD, "txt": caption} | files
    return [member(f"{key}.{kind}", content) for kind, content in found.items() if content is not None]


def ends(count):
    """Where the last of some samples ends in a tar."""
    file = io.BytesIO(tar(*(one for number in range(count) for one in sample(f"{number:02}"))))
    with tarfile.open(fileobj=file) as made:
        last = made.getmembers()[-1]
    return last.offset_data + 512


WHOLE = tar(*sample("00"), *sample("01"), *sample("02"))
TARS = {
    "nothing": b"",
    "text": b"no tar" * 500,
    "zeros": bytes(10240),
    "compressed": gzip.compress(WHOLE),
    "cut in a file": WHOLE[:1700],
    "cut in a header": WHOLE[: ends(2) + 100],
    "cut between two samples": WHOLE[: ends(2)],
    "cut after the last": WHOLE[: ends(3)],
    "garbage for a header": WHOLE[: ends(1)] + b"x" * 512 + WHOLE[ends(1) + 512 :],
    "two one after the other": WHOLE + tar(*sample("09")),
    "link": tar(*sample(), member("01.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), member("01.txt", b"x")),
    "hard link": tar(*sample(), member("01.png", type=tarfile.LNKTYPE, linkname="00.png"), member("01.txt", b"x")),
    "device": tar(*sample(), member("01.png", type=tarfile.CHRTYPE)),
    "pipe": tar(*sample(), member("01.png", type=tarfile.FIFOTYPE)),
    "sparse": tar(*sample(), member("01.png", type=tarfile.GNUTYPE_SPARSE), format=tarfile.GNU_FORMAT),
    "parent folder": tar(*sample("../00")),
    "parent of a folder": tar(*sample("a/../../00")),
    "absolute": tar(*sample("/tmp/00")),
    "name of five thousand letters": tar(*sample("a" * 5000)),
    "name that is not UTF-8": tar(*sample(os.fsdecode(b"\xff")), format=tarfile.GNU_FORMAT),
    "twice": tar(*sample(), *sample()),
    "no image": tar(*sample(png=None)),
    "an image that is not decoded": tar(*sample(png=None, heic=b"x")),
    "broken image": tar(*sample(png=half(GOOD))),
    "image of no bytes": tar(*sample(png=b"")),
    "no caption": tar(*sample(txt=None)),
    "blank caption": tar(*sample(caption=b" ")),
    "caption in Latin 1": tar(*sample(caption=b"\xe9")),
    "caption with NUL": tar(*sample(caption=b"a\0b")),
    "caption of a megabyte": tar(*sample(caption=b"word " * 200_000)),
    "unfinished JSON": tar(*sample(txt=None, json=b"{")),
    "nested JSON": tar(*sample(txt=None, json=b'{"caption": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    "JSON of a number": tar(*sample(txt=None, json=b"7")),
    "caption is a number": tar(*sample(txt=None, json=b'{"caption": 7}')),
    "caption is not a number": tar(*sample(txt=None, json=b'{"caption": NaN}')),
    "captions are a text": tar(*sample(json=b'{"captions": "x"}')),
    "half a character": tar(*sample(txt=None, json=b'{"caption": "\\ud800"}')),
}
"""Contents of shard.tar."""


def lines(*rows):
    texts = [row if isinstance(row, bytes | str) else json.dumps(row) for row in rows]
    return b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts)


def refused(folder, files, *, path=None, named, **settings):
    """Data of these files are refused, in one line that names something; nothing else is touched."""
    data = folder / "data"
    for name, content in files.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(content)
    (folder / "outside.png").write_bytes(GOOD)
    before = tree(folder)
    with pytest.raises(MemtrainError) as caught:
        settings = {"resolution": 16, "heldout_fraction": 0.0, "families": "off", **settings}
        TextImageDataModule(path or str(data), **settings).build()
    error = caught.value
    assert named in error.problem, error.problem
    assert len(error.problem) < 700
    assert "\n" not in error.problem, "one line"
    assert error.expected
    assert error.remedy
    assert tree(folder) == before, "nothing was written"


def tree(folder):
    """Files and when they changed, without the cache that the library of data sets keeps of what it reads."""
    files = [path for path in folder.rglob("*") if path.is_file() and folder / "cache" not in path.parents]
    return {str(path): path.stat().st_mtime_ns for path in files}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *args, **options: pytest.fail("another program is called"))


@pytest.mark.parametrize("what", IMAGES)
def test_images(tmp_path, what):
    rows = [{"file_name": name, "text": "x"} for name in ("bad.png", "good.png")]
    files = {"bad.png": IMAGES[what], "good.png": GOOD, "metadata.jsonl": lines(*rows)}
    refused(tmp_path, files, named="'bad.png'")


@pytest.mark.parametrize("what", ROWS)
def test_lines_of_a_table(tmp_path, what):
    first = {"file_name": "first.png", "text": "x"}
    content = lines(first, ROWS[what]) if what not in ("UTF-16", "empty") else ROWS[what]
    files = {"first.png": GOOD, "00.png": GOOD, "metadata.jsonl": content}
    named = str(tmp_path / "data")
    refused(tmp_path, files, named=named)


@pytest.mark.parametrize("what", TABLES)
def test_tables(tmp_path, what):
    refused(tmp_path, {"00.png": GOOD, "metadata.csv": TABLES[what]}, named="metadata.csv" if what != "long" else "00")


@pytest.mark.parametrize("what", SIDECARS)
def test_text_files(tmp_path, what):
    refused(tmp_path, {"00.png": GOOD, **SIDECARS[what]}, named=str(tmp_path / "data"))


@pytest.mark.parametrize("what", TARS)
def test_shards(tmp_path, what):
    path = tmp_path / "data" / "shard.tar"
    refused(tmp_path, {"shard.tar": TARS[what]}, path=str(path), named=str(path))


@pytest.mark.parametrize(
    ("path", "files", "named"),
    [
        ("none", {}, "'none'"),
        ("data/a.png", {"a.png": GOOD}, "a.png"),
        ("data/a.tar.gz", {"a.tar.gz": gzip.compress(WHOLE)}, "a.tar.gz"),
        ("data/a.zip", {"a.zip": b"PK\3\4"}, "a.zip"),
        ("data", {"notes.md": b"x"}, "data"),
        ("data", {"a.png": GOOD}, "data"),
        ("data", {"a.tar": WHOLE, "b.tar.gz": gzip.compress(WHOLE)}, "b.tar.gz"),
        ("data", {"a.tar": WHOLE, "b.tar": WHOLE}, "'00'"),
        ("data/{0..1}.tar", {"0.tar": WHOLE}, "1.tar"),
        ("data/{0..tar", {"0.tar": WHOLE}, "data/{0..tar"),
    ],
)
def test_paths(tmp_path, path, files, named):
    refused(tmp_path, files, path=path, named=named)


@pytest.mark.parametrize("make", ["broken link", "pipe", "folder", "link to itself"])
@pytest.mark.parametrize("table", [True, False])
def test_images_that_are_no_files(tmp_path, make, table):
    data = tmp_path / "data"
    data.mkdir()
    if make == "pipe":
        os.mkfifo(data / "odd.png")
    elif make == "folder":
        (data / "odd.png").mkdir()
    else:
        (data / "odd.png").symlink_to("odd.png" if make == "link to itself" else "gone.png")
    files = {"good.png": GOOD, "good.txt": b"x", "odd.txt": b"x"}
    if table:
        files["metadata.jsonl"] = lines(*({"file_name": f"{name}.png", "text": "x"} for name in ("good", "odd")))
    elif make == "folder":
        pytest.skip("a folder is no image, whatever it is called")
    refused(tmp_path, files, named="odd.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["data/closed", "data/metadata.jsonl", "data/good.png"])
def test_what_may_not_be_read(tmp_path, name):
    files = {"good.png": GOOD, "closed/a.png": GOOD}
    files["metadata.jsonl"] = lines(*({"file_name": one, "text": "x"} for one in files))
    for one, content in files.items():
        Path("data", one).parent.mkdir(parents=True, exist_ok=True)
        Path("data", one).write_bytes(content)
    Path(name).chmod(0)
    with pytest.raises(MemtrainError, match=Path(name).name):
        TextImageDataModule("data", resolution=16, families="off").build()
    Path(name).chmod(0o700)


@pytest.mark.parametrize("resolution", [-8, 0, 1, 60, 500, 1023])
def test_sides_that_no_latents_have(tmp_path, resolution):
    files = {"00.png": GOOD, "00.txt": b"x"}
    refused(tmp_path, files, named=f"resolution={resolution}", resolution=resolution)


def test_all_broken_images_are_told_at_once(tmp_path):
    files = {f"{number}.png": GOOD if number % 2 else half(GOOD) for number in range(20)}
    files |= {f"{number}.txt": b"x" for number in range(20)}
    refused(tmp_path, files, named="10 of 20 images")


def test_rows_of_data_sets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    image = {"bytes": GOOD, "path": None}
    stolen = {"bytes": None, "path": str(tmp_path / "outside.png")}
    columns = {"image": [image, stolen], "text": ["x", "y"], "number": [1, 2], "id": ["a", None], "same": ["a", "a"]}
    columns |= {"nested": [[["x"]], [["y"]]], "empty": ["x", " "]}
    made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))
    (tmp_path / "data").mkdir()
    parquet.write_table(made.data.table, tmp_path / "data" / "train.parquet")
    (tmp_path / "outside.png").write_bytes(GOOD)
    # Paths are embedded when a data set is saved, so this one is not.
    refused(tmp_path, {}, path=f"datasets:{tmp_path / 'data'}", named="names the file")
    made.save_to_disk(tmp_path / "saved")
    for options, named in {
        "caption=number": "row 00000000",
        "caption=nested": "row 00000000",
        "caption=empty": "'00000001'",
        "key=id": "'id'",
        "key=same": "'a'",
        "image=number": "'number'",
        "image=none": "'none'",
    }.items():
        refused(tmp_path, {}, path=f"datasets:{tmp_path / 'saved'}?{options}", named=named)
