"""A column of the metadata, in every form that data have one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from memtrain.data.source import open_source
from memtrain.errors import DataError
from tests.conftest import encoded_image


def test_columns_of_jsonl_csv_and_shards(write_folder: Callable[..., Path], write_shard: Callable[..., Path]) -> None:
    folder = write_folder({"x/a.png": "a", "x/b.png": "b"})
    rows = [{"file_name": f"./x/{name}.png", "text": name, "patient": number} for number, name in enumerate("ab", 7)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert open_source(str(folder)).column("patient") == {"x/a.png": "7", "x/b.png": "8"}
    assert open_source(str(folder)).column("folder") == {"x/a.png": "x", "x/b.png": "x"}
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("file_name,text,artist\nx/a.png,a,Ann\nx/b.png,b,Bob\n")
    assert open_source(str(folder)).column("artist") == {"x/a.png": "Ann", "x/b.png": "Bob"}
    files = {}
    for name in "ab":
        files |= {f"{name}.png": encoded_image(1), f"{name}.json": json.dumps({"caption": name, "site": name * 2})}
    shard = write_shard(
        {name: content if isinstance(content, bytes) else content.encode() for name, content in files.items()}
    )
    assert open_source(str(shard)).column("site") == {"a": "aa", "b": "bb"}


def test_a_column_that_is_not_there_or_has_gaps_is_refused(write_folder: Callable[..., Path]) -> None:
    folder = write_folder(3)
    with pytest.raises(DataError, match=r"3 of 3 sample\(s\) .* have no 'patient'"):
        open_source(str(folder)).column("patient")
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text(
        "\n".join([json.dumps({**json.loads(lines[0]), "patient": "p"}), *lines[1:]])
    )
    with pytest.raises(DataError, match=r"2 of 3 sample\(s\)"):
        open_source(str(folder)).column("patient")
