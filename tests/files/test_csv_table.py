"""CSV of strangers: rows are told apart for certain, or the file is refused with its line."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.errors import DataError
from memtrain.files.csv_table import csv_table


@pytest.mark.parametrize(
    "text",
    [
        'key,n\na,"1,5"\n',
        'key;n\r\na;"1,5"\r\n'.replace("\r\n", "\n"),
        "\n key\tN\na\t1,5\n\n",
        "sep=;\nkey;n\na;1,5\n",
        "sep=\t\nkey\tn\na\t1,5\n",
        'key,n,,\na,"1,5",,\n',
        'key,n\na,"1,5",,\n',
        ';key;n\n0;a;"1,5"\n',
    ],
)
def test_what_people_and_spreadsheets_write(text: str) -> None:
    found = csv_table(text, "a.csv", wanted=["key"])
    assert [(row["key"], row["n"]) for row in found.rows] == [("a", "1,5")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('key,n\nb,1\n"Untitled, 1998\na,0\nc,0\n', "line 3: a quote has no end"),
        ('key,n\n"Untitled, 1998\na,0\n"c",0\n', "line 2: there is text behind the end"),
        ('key,n\n"Untitled, 1998\n' + "a,0\n" * 40_000, "line 2: a quote has no end.*field limit"),
        ("key,n\n" + "a" * 140_000 + ",1\n", "line 2: .*field limit"),
        ("key,n\na\n", "line 2: 1 values, and the first row names 2"),
        ('key,n\n"two\nlines",1\na,1,2\n', "line 4: 3 values"),
        ("sep=;\nkey,n\na,1\n\nb;c\n", "line 5: 2 values"),
        ("Key,key \na,b\n", "several columns 'key'"),
        ("sep=|\nkey|n\n", r"separated by '\|'"),
    ],
)
def test_rows_that_cannot_be_told_apart(text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"^a.csv.*{message}"):
        csv_table(text, "a.csv", wanted=["key"])


def test_nothing_is_a_table_without_columns() -> None:
    assert csv_table("", "a.csv", wanted=["key"]).columns == ()


@settings(max_examples=80, deadline=None)
@given(text=st.text(alphabet=st.sampled_from('key,;\t\n"= a\ud800\x85\u2028'), max_size=40))
def test_any_text_is_a_table_or_refused(text: str) -> None:
    try:
        found = csv_table(text, "a.csv", wanted=["key"])
    except DataError:
        return
    assert all(set(row) == set(found.columns) for row in found.rows)


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(st.tuples(st.text(min_size=1, max_size=5), st.text(max_size=5)), max_size=4),
    delimiter=st.sampled_from(",;\t"),
)
def test_what_the_standard_library_writes_is_read_again(values: list[tuple[str, str]], delimiter: str) -> None:
    values = [tuple(one.replace("\r", "") or "x" for one in row) for row in values]
    values = [row for row in values if any(one.strip() for one in row)]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([("key", "n"), *values])
    found = csv_table(file.getvalue(), "a.csv", wanted=["key"])
    assert [(row["key"], row["n"]) for row in found.rows] == values
