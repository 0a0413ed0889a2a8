"""The first screen: one sentence, its grounds and limits, and figures with intervals, of results of every version."""

from __future__ import annotations

import pytest

from memtrain.evaluation.stages.measure.answer import answer, cannot_say, first_sentence, key_figures, rests_on
from memtrain.functional.ranking import proportion_interval
from tests.evaluation.report.made_results import full_results


def older() -> dict:
    """Results of version 2, which say less."""
    new = full_results()
    old = {name: value for name, value in new.items() if name not in ("copying", "counts", "curve", "controls")}
    old["verdict"] = {name: value for name, value in new["verdict"].items() if name not in ("rests_on", "cannot_say")}
    return {**old, "quality": {"heldout_loss": 0.1234}}


def test_the_verdict_is_one_sentence() -> None:
    found = answer(full_results())
    assert found["text"] == "This model reproduces 2 of 4 pictures, such as patient-Müller-17."
    assert found["more"] == "Chance would bring back 0.04." and "Not as it is" in found["word"]
    assert first_sentence("A ratio of 0.5 is low, e.g. here. Then more.") == (
        "A ratio of 0.5 is low, e.g. here.",
        "Then more.",
    )


def test_a_long_verdict_is_cut_after_what_its_first_measure_says() -> None:
    parts = [f"by measure {n}, {n} of 10 repeated pictures (by chance about 0.5) came back" for n in range(3)]
    results = full_results()
    results["verdict"]["text"] = f"This model reproduces training images: {'; '.join(parts)}. And more."
    found = answer(results)
    assert found["text"] == f"This model reproduces training images: {parts[0]}."
    assert found["more"] == f"Also {parts[1]}; {parts[2]}. And more."


def test_what_cannot_be_judged_names_its_first_reason() -> None:
    results = full_results()
    reasons = [{"reason": str(n), "found": f"found {n}", "remedy": "r"} for n in range(2)]
    results["verdict"] |= {"level": "unjudged", "cleared": None, "reasons": reasons, "text": "long"}
    found = answer(results)
    assert found["text"] == "The first of 2 reasons: found 0."
    assert found["more"] == "Further reason: found 1." and "cannot be judged on this evidence." in found["word"]


def test_grounds_are_those_of_the_verdict_or_worked_out() -> None:
    assert rests_on(full_results())[1] == "The picture patient-Müller-17 was asked for."
    assert cannot_say(full_results()) == ["Whether other seeds would."]
    found = rests_on(older())
    assert found[0].startswith("The evaluation sampled 4 training pictures") and "60 held-out prompts" in found[1]
    assert len(cannot_say(older())) == 3
    bare = older()
    bare["replication"]["false_positive_rate"] = None
    assert "its false-positive rate is not known" in rests_on(bare)[1]


def test_key_figures_have_intervals() -> None:
    found = {figure.label: (figure.value, figure.note) for figure in key_figures(full_results())}
    assert found["training pictures that come back"] == ("50%", "2 of 4; 40% to 60%")
    assert found["generations that are copies"][0] == "41.7%"
    assert found["test copies found"][0] == "75 to 100%"
    assert found["false-positive rate at most"] == ("1%", "60 held-out prompts; below 4%")
    assert found["held-out loss"] == ("0.1234", "0.12 to 0.13; own")
    assert "FID" not in found, "not measured"


def test_key_figures_of_older_results_are_worked_out() -> None:
    found = {figure.label: (figure.value, figure.note) for figure in key_figures(older())}
    low, high = proportion_interval(2, 4)
    value, note = found["training pictures that come back"]
    assert value == "50%" and note.startswith("2 of 4; ")
    ends = [float(end.rstrip("%")) / 100 for end in note.split("; ")[1].split(" to ")]
    assert ends == pytest.approx([low, high], abs=1e-3)
    assert found["false-positive rate at most"] == ("5%", "by the pixel ratio, from 60 held-out prompts")
    assert found["held-out loss"] == ("0.1234", "")
