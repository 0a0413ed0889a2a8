import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memtrain.data.sample_table import SampleTable, chosen, joined, keys_of
from memtrain.data.sample_texts import CONTROLS
from memtrain.data.source import Sample

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
SAMPLES = st.lists(st.builds(Sample, TEXT, TEXT, st.lists(TEXT, max_size=3).map(tuple)), max_size=6)


@settings(deadline=None, max_examples=50)
@given(SAMPLES, SAMPLES)
def test_columns_hold_the_samples_that_were_put_in(samples, others):
    table = SampleTable.of(samples)
    assert list(table) == samples == [table[row] for row in range(len(samples))] == list(table[:])
    assert table == samples and keys_of(table) == keys_of(samples)
    assert list(joined([table, SampleTable.of(others)])) == samples + others == joined([samples, table[:0], others])
    rows = list(range(len(samples)))[::-2]
    assert list(chosen(table, rows)) == chosen(samples, rows)


def test_a_text_that_is_no_utf8_is_not_taken():
    with pytest.raises(UnicodeEncodeError):
        SampleTable.of([Sample("\ud800", "caption")])


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [Sample("a", "one"), Sample("a", "two")],
        [Sample("a", "one", ("two", " "))],
        [Sample("a", " \n")],
        [Sample("a", "\x1c")],
        [Sample("a\0", "one")],
        [Sample("a", "one", ("b\0",))],
        [Sample("a", "\x9f b")],
        [Sample("ab", "one")],
        [Sample("a", "one thing")],
    ],
)
def test_what_is_unusual_about_a_sample_is_seen_in_columns(samples):
    def ordinary(some):
        return SampleTable.of(some).ordinary(most=(1, 6), controls=CONTROLS.pattern)

    good = [Sample("é", "zoë \t\n"), Sample("b", "two", ("trois",))]
    assert ordinary(good) and ordinary(good[:1])
    assert not ordinary(samples) and (not samples or not ordinary(good + samples))
