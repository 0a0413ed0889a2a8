"""Spelling and plain English: pages, docstrings, messages and comments keep to the style rules of CONTRIBUTING.md."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT
from .style.__main__ import ALLOWANCE, counted, differences, findings_of, main, read_allowance, written
from .style.rules import findings, sentences
from .style.texts import of_configuration, of_module, of_notebook, of_page, plain

SPELLED = (
    *("README.md", "docs", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "configs", "memtrain", "benchmarks"),
    *("examples", "slurm", ".ci"),
)


def test_words_are_spelt_right() -> None:
    program = shutil.which("typos", path=Path(sys.executable).parent) or shutil.which("typos")
    assert program, "typos is not installed: pip install -c constraints.txt -e '.[dev]'"
    command = [program, "--format", "brief", "--config", "_typos.toml", *SPELLED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_breaks_the_style_rules_more_often_than_it_may() -> None:
    found = differences(counted(), read_allowance(ALLOWANCE.read_text(encoding="utf-8")))
    assert not found, "\n".join(found)


LONG = "The scan " + "really " * 33
"""35 words, and no end."""


@pytest.mark.parametrize(
    ("sentence", "start"),
    [
        (LONG + "ends.", "36 words, 35 at most"),
        ("Of what files show, the scan reads all.", 'begins with "Of"'),
        ("*Below* it lies the table.", 'begins with "*Below"'),
        ("Beside the slow tests, which wait.", 'begins with "Beside"'),
        ("What a run leaves is kept.", 'begins with "What"'),
        ("Which samples are flagged.", 'begins with "Which"'),
        ("The scan reads: files, names; and captions.", "2 colons or semicolons"),
        ("Note: the scan reads: files; names.", "2 colons or semicolons"),
        ("The scan keeps those that are whole.", '"those that"'),
        ("The scan then begins Anew.", '"Anew": write again'),
        ("The scan keeps those\nthat are whole.", '"those that"'),
    ],
)
def test_a_sentence_that_breaks_a_rule_is_found(sentence: str, start: str) -> None:
    found = list(findings(sentence))
    assert len(found) == 1 and found[0].startswith(start), found


@pytest.mark.parametrize(
    "sentence",
    [
        LONG,
        "A list of names counts once, CODE, CODE, CODE, CODE, CODE and CODE: " + "the " * 27 + "end.",
        LONG + '(Wen et al., "Detecting, Explaining, and Mitigating", 2024).',
        "What does a run leave?",
        "Of course it is kept.",
        "Which *files*?",
        "Offices read files.",
        "Note: the scan reads one thing: files.",
        "The scan reads files (first: names; then: captions); then it ends.",
        'An entry of names: "first: names; then: captions".',
        "At 12:30 the ratio is 4:1; it ends.",
        "A renewed look at one's-own names, uponward.",
        "Below-average images are kept.",
    ],
)
def test_a_sentence_that_only_looks_like_it_is_let_pass(sentence: str) -> None:
    assert list(findings(sentence)) == []


def test_an_entry_begins_with_a_noun() -> None:
    assert [line[:32] for line in findings("of the run.", entry=True)] == ['an entry that begins with "of": ']
    assert list(findings("of the run.")) == list(findings("offset of the run.", entry=True)) == []
    assert list(findings("the folder of the run.", entry=True)) == []


def test_sentences_end_at_full_stops_before_a_capital_and_not_after_abbreviations() -> None:
    text = "Wen et al. (2024) read it, e.g. A. Turing did. `x` is 1.5 times. Then (see Fig. 2) it ends! Why? So."
    assert [sentence for _, sentence in sentences(plain(text))] == [
        "Wen et al. (2024) read it, e.g. A. Turing did.",
        "CODE is 1.5 times.",
        "Then (see Fig. 2) it ends!",
        "Why?",
        "So.",
    ]
    assert list(sentences("One. Two2.\n Three")) == [(0, "One."), (5, "Two2."), (12, "Three")]


PAGE = """---
title: What is left out
---
# What a heading says

One `line;
of: code` with a [link](https://x.y/a:b;c),
and $a; b$.

    indented: code;

| What | table |
|---|---|

- first
  goes on

    a second paragraph of the item
- second

!!! note "What"
    Said in a box.

<!-- What
a comment -->
```sh
What: code
```
![What picture](x.png) https://x.y is last
"""


def test_a_page_is_read_without_its_code() -> None:
    assert [(text.line, text.text.split("\n")) for text in of_page(PAGE)] == [
        (6, ["One CODE", " with a [link],", "and CODE."]),
        (15, ["first", "goes on"]),
        (18, ["a second paragraph of the item"]),
        (19, ["second"]),
        (22, ["Said in a box."]),
        (29, [" CODE is last"]),
    ]


MODULE = '''"""One.

    code: here;

Two :func:`a.b`
lines.

Args:
    first: of a thing
        that goes on.

        And on.
    second (int, optional): a thing.

Raises:
    ValueError: of nothing.

Example:
    what: it()
"""

LIMIT = 3
"""A limit."""


def f() -> None:
    if LIMIT:
        raise SomeError("Found " + name, expected=f"a {kind} of" " file", remedy="this" if here else "that")
    parser.add_argument("What", help="Of a thing.")
    call("not read")
'''


def test_a_module_is_read_by_docstring_entry_and_message() -> None:
    found = sorted(of_module(MODULE), key=lambda text: text.line)
    assert [(text.line, text.text.split("\n"), text.entry) for text in found] == [
        (1, ["One."], False),
        (5, ["Two CODE", "lines."], False),
        (9, ["of a thing", "that goes on.", "", "And on."], True),
        (13, ["a thing."], True),
        (16, ["of nothing."], False),
        (23, ["A limit."], False),
        (28, ["Found "], False),
        (28, ["a CODE of file"], False),
        (28, ["this"], False),
        (28, ["that"], False),
        (29, ["Of a thing."], False),
    ]


def test_a_section_without_entries_is_empty() -> None:
    assert [text.text for text in of_module('"""One.\n\nArgs:\n    nothing here\n"""\n')] == ["One."]


def test_a_configuration_is_read_by_its_comments() -> None:
    source = "# One\n# goes on:\n#   memtrain train\na: 1  # at the end\n# key: 3\nb: '# 4'\n"
    assert [(text.line, text.text) for text in of_configuration(source)] == [
        (1, "One\ngoes on:"),
        (4, "at the end"),
        (6, "4'"),
    ]


def test_a_notebook_is_read_by_its_markdown_cells() -> None:
    cells = [
        {"cell_type": "code", "source": ["# What: code\n"]},
        {"cell_type": "markdown", "source": ["# The title\n", "\n", "First.\n"]},
        {"cell_type": "markdown", "source": []},
    ]
    found = list(of_notebook(json.dumps({"cells": cells}, indent=1)))
    assert [(text.line, text.text) for text in found] == [(14, "First.")]


def test_a_finding_has_the_line_of_its_sentence(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("A line\nends. It goes on. What is\nleft ends.\n\nOf that, all.\n", encoding="utf-8")
    assert [(line, words) for line, _, words in findings_of(page)] == [(2, "What is left ends."), (5, "Of that, all.")]


def test_the_allowance_of_a_file_may_neither_be_too_small_nor_too_large() -> None:
    allowed = read_allowance(written({"b.md": 2, "a c.py": 1, "d.md": 0}))
    assert list(allowed.items()) == [("a c.py", 1), ("b.md", 2)]
    assert differences({"b.md": 2, "a c.py": 1}, allowed) == []
    assert differences({"b.md": 3, "e.md": 1}, allowed) == [
        "a c.py has 0 findings, 1 allowed: python -m tests.style --update",
        "b.md has 3 findings, 2 allowed: python -m tests.style b.md",
        "e.md has 1 findings, 0 allowed: python -m tests.style e.md",
    ]


def test_the_command_lists_findings_and_says_so_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text("One.\n\nOf that, all.\n", encoding="utf-8")
    (tmp_path / "good.md").write_text("One.\n", encoding="utf-8")
    assert main([str(tmp_path / "good.md")]) == 0
    assert capsys.readouterr().out == "0 findings in 1 files\n"
    assert main([str(tmp_path / "page.md")]) == 1
    said = 'begins with "Of": begin with the subject\n    Of that, all.\n1 findings in 1 files\n'
    assert capsys.readouterr().out == f"{tmp_path / 'page.md'}:3: {said}"
