"""Which rate is promised, with which confidence, and what is said where the asked one takes more held-out samples."""

import pytest

from memtrain.evidence.promise import FIELDS, percent, promise, promise_of, promised_in_short


def test_an_order_statistic_promises_its_rank_and_the_bound_of_wilks() -> None:
    found = promise(121, 0.01)
    assert found is not None
    assert (found.by, found.rate, found.needed) == ("order statistic", 1 / 122, 99)
    assert found.bound == pytest.approx(1 - 0.05 ** (1 / 121))
    assert (found.free_rate, found.free_bound) == (found.rate, found.bound)
    assert found.warning() is None
    assert promise(200, 0.01).rate == 2 / 201  # type: ignore[union-attr]


def test_a_tail_bound_promises_what_was_asked_and_states_what_holds_without_its_assumption() -> None:
    found = promise(121, 0.001)
    assert found is not None
    assert (found.by, found.needed) == ("tail bound", 999)
    assert (found.rate, found.free_rate) == (pytest.approx(0.001), 1 / 122)
    assert found.free_bound == pytest.approx(1 - 0.05 ** (1 / 121))
    assert found.bound == pytest.approx(0.122 * found.free_bound)
    said, warned = " ".join(found.sentences()), found.warning()
    assert "at most 0.1 % of samples like the 121 held-out ones, on average" in said
    assert "at most 0.3 % with 95 % confidence" in said
    assert (
        "Without this assumption, the two rates are 0.82 % and 2.4 %. A promise of 0.1 % without it needs 999 held-out"
        in said
    )
    assert warned is not None
    assert "121 held-out samples promise 0.1 % only by an assumption" in warned
    assert "A promise without an assumption needs 999 of them" in warned and "heldout_fraction" in warned


def test_the_bulk_promises_nothing_and_says_so() -> None:
    found = promise(None, 0.01)
    assert found is not None
    assert [found.figures()[name] for name in FIELDS[:5]] == [None, "bulk", None, None, None]
    assert found.sentences()[0].startswith(
        "Promised: no rate, because no held-out samples calibrated. The requested rate is 1 %."
    )
    assert "is not promised" in str(found.warning())
    assert promised_in_short({"threshold": 3.0, "heldout": None, "false_positive_rate": 0.01}).startswith("none; 1 %")


def test_without_a_threshold_nothing_is_promised() -> None:
    assert promise(7, 0.01) is None
    assert promise_of({"threshold": None, "heldout": 121, "false_positive_rate": 0.01}) is None


@pytest.mark.parametrize(("share", "said"), [(0.001, "0.1 %"), (0.02438, "2.4 %"), (0.1234, "12 %"), (0.0, "0 %")])
def test_rates_in_words(share: float, said: str) -> None:
    assert percent(share) == said
