"""Sections of the newest results: measures side by side, counts, the curve, controls; every one optional."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memtrain.evaluation.stages.measure.section import sections
from tests.evaluation.report.made_results import KEY, OTHER, full_results, write_full_results

LATER = ("copying", "counts", "curve", "controls")


def shown(folder: Path) -> dict[str, str]:
    return {section.title: str(section.body) for section in sections(folder)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each section of the full results, by title."""
    folder = tmp_path_factory.mktemp("full")
    write_full_results(folder)
    return shown(folder)


def test_every_part_is_shown(found: dict[str, str]) -> None:
    copying = found["Measures of copying"]
    assert "The recommended measure for these pictures is sscd." in copying
    assert "These measures do not see copies in these pictures, and cannot clear the model: ratio." in copying
    assert "75% (45 of 60; 65% to 85%)" in copying and "Left out: dino. no folder was named" in copying
    assert copying.index("sscd, best generation") < copying.index("ratio, best generation"), "the recommended one first"
    assert "planted: 2 of 4 above; held-out: 0 of 4 above" in copying, "the chart in words"
    assert "ROC curves" in copying and "sscd 0.500" in copying
    counts = found["Counts"]
    assert "extraction, by prompt" in counts
    assert "at most 4.0 bits. Images that the model never saw have 1.4 bits on average" in " ".join(found.values())
    assert counts.index(KEY) < counts.index(OTHER), "the group with the highest share first"
    assert "step 10: 0%; step 20: 25%; step 30: 50%" in found["Checkpoints of the training"]
    assert "93.8% (15 of 16; 83.8% to 100%)" in found["Controls"] and "0% (0 of 16" in found["Controls"]
    assert (
        "FID was not measured: no weights." in found["Quality"] and "0.01 to 0.03; features a net" in found["Quality"]
    )


@pytest.mark.parametrize("left_out", [LATER, LATER[::2]])
def test_every_part_is_optional(tmp_path: Path, left_out: tuple[str, ...]) -> None:
    write_full_results(tmp_path)
    results = {name: value for name, value in full_results().items() if name not in left_out}
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    titles = dict(zip(LATER, ("Measures of copying", "Counts", "Over the checkpoints", "Controls"), strict=True))
    found = shown(tmp_path)
    for name, title in titles.items():
        assert (title in found) == (name not in left_out)


def test_the_worst_pictures_come_first_with_their_evidence(found: dict[str, str]) -> None:
    """By the recommended measure, the nearest of each picture; held-out ones are not among them."""
    worst = found["Nearest to copies"]
    order = [worst.index(f"number {number} ") for number in (1, 0, 3, 2)]
    assert order == sorted(order), "0.91, 0.90, 0.23, 0.22"
    assert "number 4 " not in worst
    assert "evidence from 0 at step 0 to 5 at step 9; threshold at the end 3.5 reached at step 9" in worst
    assert worst.count("evidence during training") == 1, "recorded of one picture"
    assert "0.30 / 0.91, near by pixel distance" in worst and "ratio 0.30, sscd 0.91, near by pixel distance" in worst
