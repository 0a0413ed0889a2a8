"""Figures in words: what was counted, its interval, and figures of any shape."""

from __future__ import annotations

from memtrain.evaluation.report.shares import counted, is_share, rows_of, share_text, words


def test_a_share_says_what_it_is_of() -> None:
    found = {"n": 60, "reproduced": 11, "share": 11 / 60, "interval": [0.106, 0.299]}
    assert share_text(found) == "18.3% (11 of 60; 10.6% to 29.9%)"
    assert share_text({**found, "interval": None}) == "18.3% (11 of 60)"
    assert share_text({"n": 0, "k": 0, "share": None, "interval": None}) == share_text(None) == "–"
    assert counted({"n": 8, "share": 0.25}) == 2, "told from the share where no key names the number"
    assert counted({"n": 8, "share": 0.25, "sees": True, "copies": 3}) == 3
    assert is_share(found) and not is_share({"n": 3}) and not is_share([1])


def test_every_figure_of_a_nested_result_has_a_row() -> None:
    share = {"n": 4, "found": 1, "share": 0.25, "interval": [0.0, 0.5]}
    value = {"value": 0.5, "interval": [0.25, 0.75], "backend": "net", "without_copies": {"value": 1.5}}
    found = list(rows_of("counts", {"by_prompt": share, "kid": value, "n": 3, "none": None, "flag": True}))
    assert found == [
        ("counts, by prompt", "25%", "1 of 4; 0% to 50%"),
        ("counts, kid", "0.5", "0.25 to 0.75; backend net"),
        ("counts, kid, without copies", "1.5", "too few prompts for an interval"),
        ("counts, n", "3", ""),
        ("counts, flag", "yes", ""),
    ]
    assert words("heldout_loss") == "held-out loss"
