"""Prompts come out of every kind of file, and what is wrong with one is said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.stages.prompts import PromptToScore, as_prompts, known_truth, prompts_read, read_prompts
from memtrain.files.prompt_texts import MOST


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
        ("b.txt", b"\n\n", "holds no prompt: "),
        ("c.csv", b"", "holds no prompt: it has no row"),
        ("flagged.csv", b"key,caption\n", "holds no prompt: nothing was flagged, so there is nothing to score"),
        ("d.txt", "prähistorisch".encode("latin1"), "not UTF-8: byte 2"),
        ("e.jsonl", b"{not json}", "line 1 is not JSON"),
        ("f.jsonl", json.dumps(["a"]).encode(), "not a JSON object"),
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
    (tmp_path / "prompts.xlsx").write_text("[]")
    for source in (tmp_path / "prompts.xlsx", tmp_path):
        with pytest.raises(DataError, match=r"is a f.*prompts are not read"):
            read_prompts(str(source))


def test_type_and_seed_of_a_line_are_read_and_repeats_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(";Caption;type;seed\n0;a;VM;4\n1;;TM;\n2;a;;5.0\n")
    found = read_prompts(str(path))
    assert [(one.text, one.type, one.seed, one.row) for one in found] == [("a", "VM", 4, 0), ("a", None, 5, 2)]
    path.write_text("prompt,seed\na,x\n")
    with pytest.raises(DataError, match="'x' in its column `seed`"):
        read_prompts(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'["a cat", " the dog, brown "]'),
        ("b.json", b'[{"Prompt": "a cat", "n": [1]}, {"prompt": "the dog, brown"}]'),
        ("c.tsv", b"prompt\tmemorized\na cat\t1\nthe dog, brown\t0\n"),
        ("d.csv", b'sep=;\r\nprompt;n\r\na cat;1\r\n"the dog, brown";2\r\n'),
        ("e.csv", "prompt\tn\na cat\t1\nthe dog, brown\t2\n".encode("utf-16")),
        ("f.csv.gz", gzip.compress(b'\xef\xbb\xbfprompt\na cat\n"the dog, brown"\n')),
        ("g.txt.gz", gzip.compress(b"a cat\r\nthe dog, brown")),
        ("h.jsonl", b'"a cat"\n{"text": "the dog, brown"}\n'),
        ("i.JSONL.gz", gzip.compress(b'{"text": "a cat"}\n{"text": "the dog, brown"}\n')),
        ("j.csv", b'prompt,caption\na cat,\n,"the dog, brown"\n'),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_more_kinds_that_people_have(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert [prompt.text for prompt in read_prompts(str(tmp_path / name))] == ["a cat", "the dog, brown"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b'prompt,memorized\n"Untitled, 1998\na lighthouse,0\n', "line 2: a quote has no end"),
        ("b.csv", b"prompt\na cat, sitting\n", "line 2: 2 values"),
        ("c.csv", b"prompt,Prompt\na,b\n", "several columns 'prompt'"),
        ("d.csv", b"prompt,text\na,a\nb,c\n", "line 3 has different texts in its columns prompt and text"),
        ("e.jsonl", b'{"text": "a"}\n{"text": ["b"]}\n', r"line 2, `text` is not a text: \['b'\] \(list\)"),
        ("f.json", b'{"0": "a"}', "holds an object"),
        ("g.json", b'["a", 3]', "entry 1 is not a JSON object: found a number"),
        ("h.jsonl", b'{"caption": "a"}\n{"caption": NaN}\n', "line 2 is not JSON: NaN"),
        ("i.jsonl", b'{"caption": "\\ud800"}\n', "line 1.*surrogate"),
        ("j.json", b'["\\u0000"]', "entry 0.*NUL"),
        ("k.txt", b"a" * (MOST + 1), "line 1, `text` has 10001 characters"),
        ("l.csv", b"prompt,seed\na,-1\n", "'-1' in its column `seed`"),
        ("m.jsonl", b'{"text": "a", "Text": "b"}', "line 1 has several columns"),
        ("n.csv.gz", b"prompt\na\n", "cannot be read"),
        ("o.jsonl", b'{"text": "a", "type": []}', "in its column `type`"),
    ],
)
def test_rows_that_are_not_what_they_seem(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(str(tmp_path / name))


def test_missing_prompts_are_left_out_and_counted(tmp_path: Path) -> None:
    nan = float("nan")
    columns = {"text": [None, "nan", "None", "a"], "memorized": [1.0, nan, 0.0, 1.0], "seed": [nan, 2.0, nan, 3.0]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = prompts_read(str(tmp_path / "a.parquet"))
    assert found.prompts == [
        PromptToScore("nan", None, seed=2),
        PromptToScore("None", False),
        PromptToScore("a", True, seed=3),
    ]
    assert [one.row for one in found.prompts] == [1, 2, 3]
    assert found.line().endswith("a.parquet; 1 of 4 rows have no prompt and are left out, first row 0")
    pq.write_table(pa.table({"text": [nan, nan]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="holds no prompt: its 2 rows have no text"):
        read_prompts(str(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"text": [1.5, nan]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 0, `text` is not a text: 1.5"):
        read_prompts(str(tmp_path / "a.parquet"))


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\u2028prompt\x85here\n\nb", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "one\u2028prompt"}\n', encoding="utf-8")
    assert [(one.text, one.row) for one in read_prompts(str(tmp_path / "a.txt"))] == [
        ("one\u2028prompt\x85here", 0),
        ("b", 2),
    ]
    assert [one.text for one in read_prompts(str(tmp_path / "a.jsonl"))] == ["one\u2028prompt"]


@pytest.mark.parametrize(
    "source",
    [
        "prompts.xlsx",
        "my prompts.xlsx",
        "prompts.lst.gz",
        "data/",
        "./prompts",
        "/data/prompts",
        "~/p",
        "C:\\prompts",
        "p.txt",
        "https://host/prompts",
        '["a cat", "a dog"]',
    ],
)
def test_what_looks_like_a_path_is_no_prompt(source: str) -> None:
    with pytest.raises(DataError, match=r"looks like|does not exist"):
        read_prompts(source)


@pytest.mark.parametrize(
    "source",
    [
        "a cat",
        "fox",
        "Mr. Smith",
        "example.com in neon",
        "v1.5",
        "cat/dog",
        "a. b",
        "the end...",
        "c'est la vie!",
        "1/2",
    ],
)
def test_what_looks_like_a_prompt_is_one(source: str) -> None:
    assert read_prompts(source) == [PromptToScore(source)]


def test_what_is_there_is_no_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a fox").touch()
    (tmp_path / "lists").mkdir()
    (tmp_path / "list.csv").mkdir()
    for source in ("a fox", " a fox ", "lists", "lists/mine", "list.csv"):
        with pytest.raises(DataError, match=r"is a f|existing folder"):
            read_prompts(source)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["a.csv", "a.tsv", "a.txt", "a.json", "a.jsonl", "a.parquet", "a.csv.gz"]),
    content=st.binary(max_size=30)
    | st.text(alphabet=st.sampled_from('prompt,;\t\n"{}[]: 1nullNaN\0'), max_size=40).map(
        lambda text: f"prompt{text}".encode()
    )
    | st.lists(
        st.dictionaries(
            st.sampled_from(["text", "seed", "type", "memorized"]),
            st.none() | st.text(max_size=3) | st.floats() | st.lists(st.none(), max_size=1),
            max_size=4,
        ),
        max_size=3,
    ).map(lambda rows: json.dumps(rows).encode()),
)
def test_any_file_is_prompts_or_refused(name: str, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found = _read(str(path))
    assert found != []
    assert all(one.text.strip() == one.text != "" for one in found or ())


@settings(max_examples=100, deadline=None)
@given(source=st.text(max_size=20))
def test_any_words_are_a_prompt_or_refused(source: str) -> None:
    assert [one.text for one in _read(source) or ()] in ([], [source.strip()])


def _read(source: str) -> list[PromptToScore] | None:
    """The prompts, or None where they are refused."""
    try:
        return read_prompts(source)
    except DataError:
        return None


def test_texts_become_prompts_of_which_nothing_is_known() -> None:
    known = [PromptToScore("a", True)]
    assert as_prompts(known) is known
    assert as_prompts([*known, "b"]) == [PromptToScore("a", True), PromptToScore("b")]
    assert as_prompts(np.array(["a", "b"])) == [PromptToScore("a"), PromptToScore("b")]
    for prompts in ("a cat", [1], np.array([1.0])):
        with pytest.raises(ConfigurationError, match="prompts"):
            as_prompts(prompts)  # type: ignore[arg-type]
