"""Prompts come out of every kind of file, and what is wrong with one is said."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memtrain.errors import DataError
from memtrain.evaluation.stages.prompts import PromptToScore, known_truth, read_prompts


def test_one_prompt_as_it_is() -> None:
    assert read_prompts("a cat; sitting, quietly") == [PromptToScore("a cat; sitting, quietly")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "a cat\n\n the dog, brown \n"),
        ("b.csv", "Caption;URL;type\na cat;http://x;MV\n the dog, brown ;;\n"),
        ("c.csv", 'prompt,other\na cat,1\n"the dog, brown",2\n'),
        ("d.jsonl", '{"text": "a cat"}\n\n{"text": "the dog, brown", "more": 3}\n'),
        ("f.csv", 'n,prompt\n"two\nlines",a cat\n2,"the dog, brown"\n'),
        ("e.csv", "\ufeffcaption\na cat\n" + '"the dog, brown"\n'),
    ],
)
def test_kinds_of_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(str(tmp_path / name))] == ["a cat", "the dog, brown"]


def test_parquet_and_known_truth(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a", "b"], "memorized": [1, 0]}), tmp_path / "p.parquet")
    prompts = read_prompts(str(tmp_path / "p.parquet"))
    assert prompts == [PromptToScore("a", True), PromptToScore("b", False)]
    assert known_truth(prompts) == [True, False]
    assert known_truth([prompts[0], PromptToScore("c")]) is None
    assert known_truth([prompts[0]]) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"name,url\nx,y\n", r"has the columns \['name', 'url'\]"),
        ("b.txt", b"\n\n", "holds no prompt"),
        ("c.csv", b"", "holds no prompt"),
        ("d.txt", "prähistorisch".encode("latin1"), "not UTF-8: byte 2"),
        ("e.jsonl", b"{not json}", "cannot be read"),
        ("f.jsonl", json.dumps(["a"]).encode(), "no JSON object"),
        ("g.parquet", b"no parquet", "cannot be read"),
        ("h.csv", b"prompt,memorized\na,perhaps\n", "'perhaps' in its column `memorized`"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(str(tmp_path / name))


def test_missing_files_and_empty_prompts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_prompts(str(tmp_path / "nothing.csv"))
    with pytest.raises(DataError, match="prompt is empty"):
        read_prompts("  ")


def test_a_file_of_another_kind_is_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text("[]")
    for source in (tmp_path / "prompts.json", tmp_path):
        with pytest.raises(DataError, match="holds no prompts"):
            read_prompts(str(source))


def test_type_and_seed_of_a_line_are_read_and_repeats_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(";Caption;type;seed\n0;a;VM;4\n1;;TM;\n2;a;;5.0\n")
    found = read_prompts(str(path))
    assert [(one.text, one.type, one.seed, one.row) for one in found] == [("a", "VM", 4, 0), ("a", None, 5, 2)]
    path.write_text("prompt,seed\na,x\n")
    with pytest.raises(DataError, match="'x' in its column `seed`"):
        read_prompts(str(path))
