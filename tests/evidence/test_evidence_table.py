"""The evidence table, flagged.csv and the printed table."""

import csv
import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from memtrain.evaluation.stages.prompts import read_prompts
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.evidence_table import evidence_table, pictures_in, print_summary, write_flagged
from memtrain.evidence.verdict import calibration_figures
from memtrain.evidence.visit_summary import summarise
from memtrain.families.table import Families
from memtrain.files.key_table import read_key_table

COLUMNS = ["denoising_loss", "attention_entropy.up"]


def seen(keys: list[str], flagged: list[bool], weights: list[float]) -> pa.Table:
    """What the records of one batch say."""
    batch = pa.array([0] * len(keys), pa.int64())
    columns = {"key": pa.array(keys, pa.string()), "batch": batch, "rank": batch.cast(pa.int32())}
    flags = {"flagged": pa.array(flagged, pa.bool_()), "weight": pa.array(weights, pa.float32())}
    return summarise([pa.table(columns | flags)])


@pytest.fixture
def calibration() -> Calibration:
    made = Calibration(2, scored=slice(0, 1), memorized_when="low", buckets=1, minimum_visits=1)
    for value in torch.randn(40, generator=torch.Generator().manual_seed(0)):
        made.add_heldout([f"held {value}"], [0], torch.tensor([[value, 0.0]]))
    made.threshold = 3.0
    made.add(["b", "a", "b"], [0, 0, 0], torch.tensor([[-9.0, 0.25], [0.5, 0.0], [-11.0, 0.75]]), step=7)
    return made


@pytest.fixture
def table(calibration: Calibration) -> pa.Table:
    steps = seen(["b", "a", "b"], [False, False, True], [1.0, 1.0, 0.0])
    return evidence_table(
        steps, calibration, COLUMNS, {"a": "plain", "b": '=cmd,"x"\nline'}, {"a": 1, "b": 20}, groups={"b": "planted"}
    )


def test_one_row_per_sample_most_suspicious_first(table: pa.Table) -> None:
    first, second = table.to_pylist()
    assert (first["key"], second["key"]) == ("b", "a")
    assert (first["visits"], first["visits_per_epoch"], first["flagged"]) == (2, 20, True)
    assert first["denoising_loss"] == -10.0
    assert math.isnan(first["attention_entropy.up"]), "evidence is of what flags go by"
    assert (first["flagged_share"], first["skipped"], first["first_flagged_step"]) == (0.5, 0.5, 7)
    assert (first["group"], second["group"]) == ("planted", None)
    assert (second["flagged"], second["first_flagged_step"]) == (False, None)


def test_flagged_csv_survives_any_caption(table: pa.Table, tmp_path: Path) -> None:
    write_flagged(table, tmp_path / "flagged.csv")
    with (tmp_path / "flagged.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == ["b"]
    assert rows[0]["caption"] == """'=cmd,"x"\nline""", "a spreadsheet would evaluate it"


def test_flagged_captions_are_prompts_as_they_stand(table: pa.Table, tmp_path: Path) -> None:
    write_flagged(table, tmp_path / "flagged.csv")
    assert [prompt.text for prompt in read_prompts(str(tmp_path / "flagged.csv"))] == ['=cmd,"x"\nline']


def test_the_screen_names_the_samples_and_the_next_command(
    table: pa.Table, calibration: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").touch()
    print_summary(table, calibration, tmp_path)
    shown = capsys.readouterr().out
    assert "1 of 2 training samples was flagged" in shown
    assert "could not be flagged" not in shown
    assert "-100 %" in shown
    assert f"memtrain measure --run {tmp_path}" in shown


def test_samples_that_were_never_visited_count_as_not_judged(
    table: pa.Table, calibration: Calibration, capsys: pytest.CaptureFixture[str]
) -> None:
    print_summary(table, calibration, Path("runs/mine"), keys=["a", "b", "c"])
    shown = capsys.readouterr().out
    assert "1 of 3 training samples was flagged" in shown
    assert "1 of 3 training samples had fewer than 1 counted visits and could not be flagged" in shown


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [0, 1, 2])
def test_samples_without_a_counted_visit_have_no_mean_and_show_none(
    count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration, keys = Calibration(2, scored=slice(0, 1), memorized_when="low", buckets=1), ["a", "b"][:count]
    calibration.add(keys, [None] * count, torch.randn(count, 2), step=0)
    steps = seen(keys, [False] * count, [1.0] * count)
    table = evidence_table(steps, calibration, COLUMNS, {}, {})
    assert table.num_rows == count
    assert all(math.isnan(row[name]) for row in table.to_pylist() for name in (*COLUMNS, "p_value"))
    print_summary(table, calibration, Path("runs/mine"))
    shown = capsys.readouterr().out
    assert "nan" not in shown
    assert "No sample could be flagged" in shown
    if count:
        assert f"{count} of {count} training samples had fewer than" in shown


def test_the_largest_change_is_that_of_the_sites_which_have_one(
    calibration: Calibration, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"key": "a", "picture_family": "a", "caption": "", "visits": 1, "score": 0.0, "skipped": 0.0}
    entropies = {"attention_entropy.down": math.nan, "attention_entropy.up": -0.25, "attention_entropy.mid": 0.125}
    print_summary(
        pa.Table.from_pylist([{**row, "flagged": False, "first_flagged_step": None, **entropies}]),
        calibration,
        Path("runs/mine"),
    )
    assert "-0.250" in capsys.readouterr().out


@pytest.fixture
def with_families() -> Calibration:
    families = Families(dict.fromkeys(("b", "b2", "b3"), "b"), dict.fromkeys(("a", "c", "d"), "a"))
    made = Calibration(2, scored=slice(0, 1), memorized_when="low", buckets=1, minimum_visits=2)
    made.group_by(families, pictures=4)
    for value in torch.randn(40, generator=torch.Generator().manual_seed(0)):
        made.add_heldout([f"held {value}"], [0], torch.tensor([[value, 0.0]]))
    made.threshold = 3.0
    made.add(["b", "a", "b2"], [0, 0, 0], torch.tensor([[-9.0, 0.25], [0.5, 0.0], [-11.0, 0.75]]), step=7)
    return made


def of_families(calibration: Calibration) -> pa.Table:
    steps = seen(["b", "a", "b2"], [False, False, True], [1.0, 1.0, 0.0])
    return evidence_table(steps, calibration, COLUMNS, {"a": "plain", "b": "star", "b3": "sun"}, {"a": 1, "b": 2})


def test_every_file_of_a_flagged_picture_has_a_row_visited_or_not(with_families: Calibration, tmp_path: Path) -> None:
    table = of_families(with_families)
    rows = {row["key"]: row for row in table.to_pylist()}
    assert set(rows) == {"a", "b", "b2", "b3"}
    assert [rows[key]["picture_family"] for key in ("a", "b", "b2", "b3")] == ["a", "b", "b", "b"]
    assert [rows[key]["caption_family"] for key in ("a", "b3")] == ["a", "b3"]
    assert [rows[key]["flagged_by"] for key in ("a", "b", "b3")] == [None, "picture", "picture"]
    unseen = rows["b3"]
    names = ("visits", "flagged_share", "skipped", "first_flagged_step")
    assert [unseen[name] for name in names] == [0, None, None, 7]
    assert math.isnan(unseen["denoising_loss"])
    assert (rows["b"]["denoising_loss"], rows["b2"]["denoising_loss"]) == (-9.0, -11.0)
    assert rows["b"]["score"] == unseen["score"] > 3
    write_flagged(table, tmp_path / "flagged.csv")
    with (tmp_path / "flagged.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert {row["key"] for row in read} == {"b", "b2", "b3"}
    assert list(read[0]) == [
        *("key", "caption", "picture_family", "caption_family", "flagged_by"),
        *("visits", "score", "p_value", "first_flagged_step"),
    ]


def test_the_screen_shows_pictures_and_the_verdict_counts_both(
    with_families: Calibration, capsys: pytest.CaptureFixture[str]
) -> None:
    table = of_families(with_families)
    pictures = pictures_in(table)
    assert [(row["picture_family"], row["files"], row["visits"]) for row in pictures] == [("b", 3, 2), ("a", 1, 1)]
    assert (pictures[0]["denoising_loss"], pictures[0]["skipped"]) == (-10.0, 0.5)
    with_families.levels.common.add("a")
    print_summary(table, with_families, Path("runs/mine"), keys=["a", "b", "b2", "b3", "c", "d"])
    shown = capsys.readouterr().out
    assert "1 of 4 training pictures was flagged (3 of 6 files)" in shown
    assert "3 of 6 training samples had fewer than 2 counted visits of their picture and could not be flagged" in shown
    assert "1 captions are shared by more than 10 % of the pictures" in shown
    assert "'plain'" in shown
    figures = calibration_figures(with_families, ["a", "b", "b2", "b3", "c", "d"])
    assert (figures["pictures"], figures["pictures_flagged"], figures["captions_flagged"]) == (4, 1, 0)
    assert (figures["samples"], figures["flagged"], figures["judged"]) == (6, 3, 3)


def test_captions_do_not_act_on_the_terminal(
    table: pa.Table, calibration: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = pa.array(["a\x1b[2J\x07\u202eb"] * len(table))
    table = table.set_column(table.column_names.index("caption"), "caption", captions)
    print_summary(table, calibration, tmp_path)
    shown = capsys.readouterr().out
    assert r"a\x1b[2J\x07" in shown and not {"\x1b", "\x07", "\u202e"} & set(shown)
    write_flagged(table, tmp_path / "flagged.csv")
    assert b"\x1b" not in (tmp_path / "flagged.csv").read_bytes()
    assert read_key_table(tmp_path / "flagged.csv") == ["b"]
