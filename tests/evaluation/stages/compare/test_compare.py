"""Two evaluated runs: pairs, exact tests, what is refused, and the line that says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.stats import binomtest

from memtrain.cli import evaluate
from memtrain.evaluation.stages.compare.compare import mcnemar
from memtrain.evaluation.stages.compare.stage import Compare

SEEDS = (0, 1)
PICTURES = 12


def write_run(
    folder: Path, *, back: set[int], loss: float = 0.1, skip: int = 0, colour: int = 0, **changed: Any
) -> Path:
    """An evaluated run that reproduces the pictures `back` of twelve, with four held-out prompts."""
    place = folder / "evaluation"
    place.mkdir(parents=True)
    sampling = {"seeds": list(SEEDS), "steps": 5, "guidance_scale": 4.0, "scheduler": "DDIM", "images": 32, **changed}
    results = {
        "created": "2026-01-01T00:00:00Z",
        "verdict": {"level": "none", "text": "x"},
        "sampling": sampling,
        "replication": {"threshold": 0.6, "false_positive_rate": 0.05},
        "quality": {"heldout_loss": loss, "kid": {"value": None, "reason": "not asked for"}},
    }
    (place / "results.json").write_text(json.dumps(results), encoding="utf-8")
    Image.fromarray(np.full((8, 8, 3), colour, dtype=np.uint8)).save(place / "image.png")
    rows = []
    for number in range(skip, PICTURES + 4):
        for seed in SEEDS:
            copied = number in back and seed == 1
            rows.append(
                {
                    "key": f"key-{number}",
                    "picture_family": f"key-{number // 2 * 2}" if number < 4 else f"key-{number}",
                    "caption": f"<b>caption {number}",
                    "group": "unique" if number < PICTURES else "heldout",
                    "seed": seed,
                    "ratio": 0.5 if copied else 0.9 + 0.01 * number,
                    "reproduced": copied,
                    "image": "image.png",
                    "own_image": "image.png",
                    "copy.sscd.own": 0.9 if copied else 0.1,
                }
            )
    pq.write_table(pa.Table.from_pylist(rows), place / "samples.parquet")
    return folder


@pytest.mark.parametrize(("stopped", "started"), [(0, 0), (5, 0), (3, 4), (1, 9), (11, 1)])
def test_the_exact_test_is_that_of_a_fair_coin(stopped: int, started: int) -> None:
    n = stopped + started
    assert mcnemar(stopped, started) == pytest.approx(binomtest(stopped, n).pvalue if n else 1.0)


def test_a_run_against_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command: pictures are counted, not files; three stop, one starts; the line says it; images are there."""
    before = write_run(tmp_path / "plain", back={0, 1, 4, 5, 6}, loss=0.1)
    after = write_run(tmp_path / "safe", back={6, 7}, loss=0.11, colour=200)
    evaluate(["compare", str(before), str(after), "--output", str(tmp_path / "out")])
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("safe against plain. Gained: 4 of 10 training pictures came back, 2 do now (-20.0 points")
    assert f"exact p {mcnemar(3, 1):.2g})" in line and "Cost: held-out loss 0.1 to 0.11 (+10.0%)" in line
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    trained = found["groups"]["trained on"]
    assert (trained["n"], trained["prompts"], trained["stopped"], trained["started"]) == (10, 12, 3, 1)
    assert trained["change"]["mean"] == pytest.approx(-0.2)
    assert trained["best_ratio"]["before"] == pytest.approx((4 * 0.5 + 0.92 + 0.97 + 0.98 + 0.99 + 1 + 1.01) / 10)
    low, high = trained["change"]["interval"]
    assert -0.6 <= low < -0.2 < high <= 0.2
    assert trained["similarity"]["sscd"]["change"]["mean"] == pytest.approx(0.8 * -0.2)
    assert found["groups"]["heldout"]["change"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    assert "kid" not in found["quality"], "not measured in either"
    assert [one["reproduced_before"] for one in found["shown"][:4]].count(True) == 3, "those that changed sides first"
    with Image.open(tmp_path / "out" / found["shown"][0]["after"]) as image:
        assert image.getpixel((0, 0)) == (200, 200, 200)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert line in page and "&lt;b&gt;caption" in page and page.count("<img") == 3 * 10
    assert "safe against plain" in (tmp_path / "out" / "results.md").read_text(encoding="utf-8")


def test_a_run_against_itself_gains_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", back={0, 4})
    evaluate(["compare", "--runs", json.dumps([str(run), str(run / "evaluation")]), "--output", str(tmp_path / "o")])
    found = json.loads((tmp_path / "o" / "comparison.json").read_text())
    assert "2 of 10 training pictures come back, as before" in found["summary"]
    assert found["groups"]["trained on"]["p_value"] == 1.0
    assert [run["name"] for run in found["runs"]] == ["a", "a"]


def test_prompts_that_one_alone_was_asked_are_counted_and_left_out(tmp_path: Path) -> None:
    before, after = write_run(tmp_path / "a", back={0}), write_run(tmp_path / "b", back=set(), skip=4)
    evaluate(["compare", str(before), str(after), "--output", str(tmp_path / "o")])
    paired = json.loads((tmp_path / "o" / "comparison.json").read_text())["paired"]
    assert paired == {"prompts": 12, "images": 24, "only_before": 4, "only_after": 0}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": 9}, r"a was sampled with steps 5, b with 9[\s\S]*Expected:[\s\S]*Remedy:"),
        ({"guidance_scale": 1.0}, "guidance_scale 4.0, b with 1.0"),
        ({"skip": 9}, "a has 16 prompts and b has 7, and only"),
    ],
)
def test_what_cannot_be_paired_is_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    before, after = write_run(tmp_path / "a", back=set()), write_run(tmp_path / "b", back=set(), **changed)
    if "skip" in changed:
        table = pq.read_table(after / "evaluation" / "samples.parquet")
        keys = pa.array([key + "x" for key in table["key"].to_pylist()])
        pq.write_table(table.set_column(0, "key", keys), after / "evaluation" / "samples.parquet")
    with pytest.raises(SystemExit, match=words):
        evaluate(["compare", str(before), str(after), "--output", str(tmp_path / "o")])
    assert not (tmp_path / "o" / "comparison.json").exists()


def test_results_of_two_types_of_numbers_are_refused(tmp_path: Path) -> None:
    """Where both say theirs; those of earlier versions do not."""
    runs = [write_run(tmp_path / name, back=set()) for name in ("a", "b")]
    for run, dtype in zip(runs, ("float32", "bfloat16"), strict=True):
        file = run / "evaluation" / "results.json"
        evaluate(["compare", *map(str, runs), "--output", str(tmp_path / "o")])
        file.write_text(json.dumps({**json.loads(file.read_text()), "dtype": dtype}), encoding="utf-8")
    with pytest.raises(SystemExit, match="a was computed in float32, b in bfloat16"):
        evaluate(["compare", *map(str, runs), "--output", str(tmp_path / "o")])


def test_another_caption_under_the_same_key_is_refused(tmp_path: Path) -> None:
    before, after = write_run(tmp_path / "a", back=set()), write_run(tmp_path / "b", back=set())
    table = pq.read_table(after / "evaluation" / "samples.parquet")
    captions = pa.array(["other", *table["caption"].to_pylist()[1:]])
    position = table.column_names.index("caption")
    pq.write_table(table.set_column(position, "caption", captions), after / "evaluation" / "samples.parquet")
    with pytest.raises(SystemExit, match="'key-0' is '<b>caption 0' in a and 'other' in b"):
        evaluate(["compare", str(before), str(after), "--output", str(tmp_path / "o")])


def test_other_than_two_folders_with_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"1 folder\(s\) to compare"):
        evaluate(["compare", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"results\.json does not exist[\s\S]*measure --run"):
        evaluate(["compare", str(tmp_path), str(tmp_path), "--output", str(tmp_path / "o")])
    assert Compare(runs=["runs/a", "runs/b/evaluation"]).folder == Path("runs/comparison/a-b")


def test_results_that_are_spoilt_or_name_files_elsewhere_are_refused(tmp_path: Path) -> None:
    before, after = write_run(tmp_path / "a", back=set()), write_run(tmp_path / "b", back={1})
    words = ["compare", str(before), str(after), "--output", str(tmp_path / "o")]
    place = after / "evaluation"
    whole = (place / "results.json").read_text()
    for content, said in (
        (whole[:50], "is not JSON"),
        ("[]", "not hold a JSON object"),
        ('{"created": "x"}', "no sampling.seeds"),
    ):
        (place / "results.json").write_text(content)
        with pytest.raises(SystemExit, match=rf"{said}[\s\S]*measure --run"):
            evaluate(words)
    (place / "results.json").write_text(whole)
    table = pq.read_table(place / "samples.parquet")
    position = table.column_names.index("image")
    outside = pa.array(["../../image.png"] * len(table))
    pq.write_table(table.set_column(position, "image", outside), place / "samples.parquet")
    with pytest.raises(SystemExit, match=r"samples.parquet: image is '../../image.png'"):
        evaluate(words)
    pq.write_table(table.drop_columns(["ratio"]), place / "samples.parquet")
    with pytest.raises(SystemExit, match=r"no column 'ratio'"):
        evaluate(words)
