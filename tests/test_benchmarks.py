"""The ablation of the mitigations: its commands, what it keeps, what it pools, and its figures."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer
from PIL import Image

from memtrain import cli
from memtrain.functional.ranking import proportion_interval

from .conftest import ROOT


class Modules:
    """The scripts in `benchmarks/`, which import each other as neighbours."""

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(name)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Modules:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return Modules()


def kept(planted: int, *, loss: float = 0.1, kid: float = 0.2, **changes: Any) -> dict[str, Any]:
    """Figures of a run as the store keeps them."""
    return {
        "identity": {},
        "groups": {"planted": {"n": 10, "reproduced": planted}, "unique": {"n": 60, "reproduced": 1}},
        "doses": None,
        "heldout_loss": loss,
        "kid": kid,
        "kid_standard_error": 0.01,
        "kid_without_copies": {"value": kid + 0.01, "n_generated": 400},
        "flags": {
            "planted": {"k": 9, "n": 10},
            "unique": {"k": 0, "n": 1000},
            "first_flagged_step": {"min": 8, "median": 16, "max": 40},
        },
        "skipped": {"planted": 0.0, "unique": 0.0},
        **changes,
    }


def test_every_command_is_one_that_training_understands(
    scripts: Modules, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each row is the setting, its overlay's callback beside those of the baseline, and its own options."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    rows = scripts.mitigation_rows
    scripts.mitigation_rows.write_flagged(tmp_path / "flagged-seed3.csv", ["x"])
    read = 0
    for part, settings in ((rows.ROWS, rows.SETTING), (rows.DOSE_ROWS, rows.DOSE_SETTING)):
        for row in part:
            if rows.missing_overlays(row):
                continue
            arguments = rows.training_arguments(row, 3, folder=tmp_path, setting=settings)
            with pytest.raises(SystemExit) as ended:
                cli.train(["fit", *arguments, "--print_config"])
            assert ended.value.code == 0, row.name
            config = yaml.safe_load(capsys.readouterr().out)
            data = config["data"]["init_args"]
            assert (config["seed_everything"], data["duplicates"]["seed"]) == (3, 3)
            assert data["duplicates"]["count"] == settings["--data.init_args.duplicates.count"]
            assert config["trainer"]["max_steps"] == 900
            names = [entry["class_path"].rsplit(".", 1)[-1] for entry in config["trainer"]["callbacks"]]
            assert names[0] == "MemorizationMonitor"
            for overlay in row.overlays:
                assert overlay.replace("_", "") == names[-1].lower()
            if row.name.startswith("caption_"):
                assert config["trainer"]["callbacks"][-1]["init_args"]["kind"] == row.name.removeprefix("caption_")
            if row.needs_flags:
                assert data["exclude"] == str(tmp_path / "flagged-seed3.csv")
            read += 1
    assert read >= 10


def test_figures_belong_to_a_configuration_with_what_it_builds_on(scripts: Modules) -> None:
    recommended, baseline = (
        scripts.mitigation_rows.identity(row, {})["config"]
        for name in ("recommended", "baseline")
        for row in scripts.mitigation_rows.ROWS
        if row.name == name
    )
    assert recommended["trainer"].pop("default_root_dir") == baseline["trainer"].pop("default_root_dir").split("_")[0]
    assert len(recommended["trainer"].pop("callbacks")) == 1 + len(baseline["trainer"].pop("callbacks"))
    assert recommended == baseline


def test_rows_have_names_of_their_own_and_unknown_ones_are_refused(scripts: Modules) -> None:
    rows = scripts.mitigation_rows
    assert len({row.name for row in rows.ROWS}) == len(rows.ROWS)
    assert [row.name for row in rows.chosen(rows.ROWS, ["exclude", "baseline"])] == ["baseline", "exclude"]
    with pytest.raises(ValueError, match="no row is called"):
        rows.chosen(rows.ROWS, ["basline"])


def test_other_captions_are_made_of_an_images_facts(scripts: Modules, tmp_path: Path) -> None:
    facts = {"label": "duck", "colours": ["grey", "white"], "tags": ["cartoon", "bird"]}
    captions = scripts.mitigation_rows.alternative_captions(facts, "a picture of duck")
    assert "a picture of duck" not in captions
    assert "duck in grey and white" in captions
    assert len(set(captions)) == len(captions) == 4
    bare = scripts.mitigation_rows.alternative_captions({"label": "duck", "colours": [], "tags": []}, "x")
    assert len(bare) == len(set(bare)) >= 4
    scripts.mitigation_rows.write_captions(tmp_path / "captions.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == 1223 * 11
    assert all(line["captions"] for line in lines)


def test_what_is_finished_is_not_run_again_and_what_has_changed_is(scripts: Modules, tmp_path: Path) -> None:
    results, path = scripts.mitigation_results, tmp_path / "figures" / "mitigations.json"
    store = results.Store(path)
    store.add("rows", "baseline", 10, figures=kept(1, identity={"a": 1}))
    store.add("rows", "baseline", 2, figures=kept(2, identity={"a": 1}))
    store.set_timing("plain", {"seconds": 0.2})
    again = results.Store(path)
    assert again.content == store.content
    assert list(again.content["rows"]["baseline"]) == ["2", "10"]
    assert again.finished("rows", "baseline", 2, identity={"a": 1})["groups"]["planted"]["reproduced"] == 2
    assert again.finished("rows", "baseline", 2, identity={"a": 2}) is None
    assert again.finished("rows", "baseline", 3, identity={"a": 1}) is None
    assert again.finished("dose", "baseline", 2, identity={"a": 1}) is None
    assert [file.name for file in path.parent.iterdir()] == ["mitigations.json"], "nothing half written is left"


def fake_run(scripts: Modules, monkeypatch: pytest.MonkeyPatch, *, failing: str = "") -> list[tuple[str, list[str]]]:
    """Replaces training and evaluation; returns the commands that were called, by script."""
    calls: list[tuple[str, list[str]]] = []

    def call(arguments: list[str], *, log: Path | None = None, threads: int | None = None) -> None:
        calls.append((arguments[0], list(arguments)))
        place = Path(arguments[arguments.index("--trainer.default_root_dir" if "fit" in arguments else "--run") + 1])
        if failing and failing in str(place):
            raise scripts.experiment.CommandError("train.py ended with 1\nthe reason")
        if arguments[0] == "train.py":
            assert threads == 1
            (place / "pipeline").mkdir()
            (place / "pipeline" / "model_index.json").write_text("{}")
            scripts.mitigation_rows.write_flagged(place / "flagged.csv", ["planted-b", "planted-a"])
            data = {"init_args": {"exclude": "x.csv", "path": "y"}}
            (place / "config.yaml").write_text(yaml.safe_dump({"data": data}))
            return
        assert (place / "pipeline" / "model_index.json").is_file()
        output = Path(arguments[arguments.index("--output") + 1]) if "--output" in arguments else place / "evaluation"
        output.mkdir()
        monitor = {"class_path": "memtrain.callbacks.monitor.MemorizationMonitor", "init_args": {"x": str(place)}}
        groups = {"planted": {"n": 10, "reproduced": 7, "share": 0.7}}
        content = {
            "replication": {"groups": groups},
            "training": None,
            "quality": {"heldout_loss": 0.1, "kid": {"value": 0.2, "standard_error": 0.01}},
            "config": {
                "trainer": {"callbacks": [monitor], "max_steps": 900},
                "model": {"init_args": {}},
                "data": yaml.safe_load((place / "config.yaml").read_text())["data"],
            },
            "sampling": {},
        }
        (output / "results.json").write_text(json.dumps(content))

    monkeypatch.setattr(scripts.experiment, "call", call)
    return calls


def test_runs_are_resumed_from_the_file_and_from_the_folder(
    scripts: Modules, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls, script = fake_run(scripts, monkeypatch), scripts.mitigations
    arguments: dict[str, Any] = {
        "seeds": [0, 1],
        "rows": ["baseline", "exclude"],
        "json": str(tmp_path / "figures.json"),
        "folder": str(tmp_path / "runs"),
        "jobs": 2,
    }
    script.main(**arguments)
    assert sorted(name for name, _ in calls) == ["evaluate.py"] * 4 + ["train.py"] * 4
    trained = [words for name, words in calls if name == "train.py"]
    assert all(words[words.index("--ckpt_path") + 1] == "last" for words in trained)
    content = json.loads((tmp_path / "figures.json").read_text())
    assert content["rows"]["baseline"]["1"]["flagged_keys"] == ["planted-a", "planted-b"]
    assert str(tmp_path) not in json.dumps(content["rows"]), "no path of a machine"
    with (tmp_path / "runs" / "flagged-seed1.csv").open(newline="") as file:
        assert [row["key"] for row in csv.DictReader(file)] == ["planted-a", "planted-b"]
    asked = yaml.safe_load((tmp_path / "runs" / "exclude-seed1" / "asked" / "config.yaml").read_text())
    assert asked["data"]["init_args"] == {"exclude": None, "path": "y"}, "the excluded images are asked for"

    calls.clear()
    script.main(**{**arguments, "folder": str(tmp_path / "elsewhere")})
    assert not calls, "finished in the file, whatever the folder"

    (tmp_path / "figures.json").unlink()
    script.main(**arguments)
    assert not calls, "finished in the folder"

    shared = scripts.mitigation_rows.SETTING
    monkeypatch.setitem(shared, "--trainer.max_steps", 1000)
    script.main(**{**arguments, "rows": ["baseline"], "seeds": [0]})
    assert [name for name, _ in calls] == ["train.py", "evaluate.py"], "another setting is another run"
    assert (tmp_path / "runs" / "baseline-seed0-1").is_dir(), "the earlier run is kept"


def test_a_failed_run_is_reported_and_stops_no_other(
    scripts: Modules, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_run(scripts, monkeypatch, failing="baseline-seed0")
    with pytest.raises(SystemExit) as ended:
        scripts.mitigations.main(
            seeds=[0, 1],
            rows=["baseline", "recommended", "exclude"],
            json=str(tmp_path / "figures.json"),
            folder=str(tmp_path / "runs"),
        )
    assert "2 run(s) failed" in str(ended.value)
    assert "the reason" in str(ended.value)
    assert "exclude needs the baseline of seed 0" in str(ended.value)
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert {name: list(seeds) for name, seeds in rows.items()} == {
        "recommended": ["0", "1"],
        "baseline": ["1"],
        "exclude": ["1"],
    }


def test_a_failing_command_says_the_end_of_its_log(scripts: Modules, tmp_path: Path) -> None:
    experiment = scripts.experiment
    program = "import os, sys; print('threads', os.environ['OMP_NUM_THREADS']); sys.exit('too bad')"
    with pytest.raises(experiment.CommandError, match=r"ended with 1(.|\n)*too bad") as raised:
        experiment.call(["-c", program], log=tmp_path / "x.log", threads=1)
    assert "threads 1" in str(raised.value)
    assert "too bad" in (tmp_path / "x.log").read_text()


def content(scripts: Modules) -> dict[str, Any]:
    doses = [
        {"repeats": repeats, "n": n, "reproduced": k, "share": k / n}
        for repeats, n, k in ((1, 60, 1), (12, 6, 2), (200, 6, 6))
    ]
    found: dict[str, Any] = {
        "rows": {
            "baseline": {"0": kept(10, loss=0.1, kid=0.1), "1": kept(9, loss=0.2, kid=0.1)},
            "recommended": {"0": kept(0, loss=0.09, kid=0.15), "1": kept(1, loss=0.22, kid=0.17)},
            "loss_skipping": {"4": kept(8, skipped={"planted": 0.5, "unique": 0.0})},
        },
        "dose": {"baseline": {"0": kept(1, doses=doses), "1": kept(1, doses=doses)}},
        "timing": {
            "recommended": {"ratio_median": 1.05, "ratio_interval_95": [1.01, 1.11]},
            "plain": {"seconds": 0.2, "threads": 2},
            "profile": {"seconds": 61.0, "threads": 2},
        },
    }
    rows = scripts.mitigation_rows
    for part, setting in (("rows", rows.SETTING), ("dose", rows.DOSE_SETTING)):
        for row in rows.ROWS:
            for run in found[part].get(row.name, {}).values():
                run["identity"] = rows.identity(row, setting)
    return found


def test_seeds_are_pooled_and_compared_with_the_baseline_of_the_same_seed(scripts: Modules) -> None:
    lines = {line["row"].name: line for line in scripts.mitigation_results.summarize(content(scripts))}
    assert list(lines) == ["baseline", "recommended", "loss_skipping"]
    planted = lines["recommended"]["groups"]["planted"]
    assert (planted["k"], planted["n"]) == (1, 20)
    assert tuple(planted["interval"]) == proportion_interval(1, 20)
    assert lines["recommended"]["loss_change"] == pytest.approx({"mean": 0.0, "min": -0.1, "max": 0.1})
    assert lines["recommended"]["kid_without_copies_change"] == pytest.approx({"mean": 0.06, "min": 0.05, "max": 0.07})
    assert lines["recommended"]["flags"]["unique"]["n"] == 2000
    assert lines["recommended"]["groups"]["varied_captions"] is None
    assert lines["loss_skipping"]["loss_change"] is None, "no baseline of seed 4"


def test_runs_of_another_configuration_are_left_out(scripts: Modules) -> None:
    found = content(scripts)
    found["rows"]["baseline"]["1"]["identity"] = {"config": "an earlier one"}
    found["dose"]["baseline"]["1"]["identity"] = {"config": "an earlier one"}
    lines = {line["row"].name: line for line in scripts.mitigation_results.summarize(found)}
    assert lines["baseline"]["seeds"] == [0] and lines["recommended"]["seeds"] == [0, 1]
    assert lines["recommended"]["loss_change"] == pytest.approx({"mean": -0.1, "min": -0.1, "max": -0.1})
    assert scripts.mitigation_results.pooled_doses(found)["baseline"][1]["n"] == 60


def test_markdown_has_one_line_per_row_with_counts_and_number_of_seeds(scripts: Modules) -> None:
    text = scripts.mitigation_results.markdown_tables(content(scripts))
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}
    assert "1 of 20 (1% to 24%)" in lines["recommended"]
    assert "0.1550 (0.0900 to 0.2200)" in lines["recommended"]
    assert "1.05 (1.01 to 1.11)" in lines["recommended"]
    assert "| 2 of 3 |" in lines["recommended"]
    assert lines["loss skipping"].endswith("| 50.0 % | 0.0 % | not measured |")
    assert "| – | – | 1.05" in lines["recommended"], "it skips nothing"
    assert "0 of 2,000 (0.00% to 0.19%)" in lines["recommended"]
    assert "| 2 of 120" in text
    assert "4 of 12" in text
    assert "takes 61 s" in text


def test_figures_are_drawn(scripts: Modules, tmp_path: Path) -> None:
    figures = scripts.mitigation_figures
    figures.draw(content(scripts), tmp_path / "docs" / "table.png")
    figures.draw_doses(content(scripts), tmp_path / "docs" / "dose.png")
    for name in ("table", "dose"):
        with Image.open(tmp_path / "docs" / f"{name}.png") as picture:
            assert picture.width == 9 * figures.DOTS_PER_INCH
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 50


def test_the_stopwatch_leaves_out_the_first_cycle(scripts: Modules) -> None:
    watch = scripts.mitigation_timing.Stopwatch()
    watch.ends = [100.0 * index for index in range(8)] + [700 + 1.0 * (index + 1) for index in range(16)]
    assert watch.seconds_per_step() == 1.0
    with pytest.raises(ValueError, match="multiple of 8"):
        scripts.mitigation_timing.Course(Path("x"), steps=20)


def test_short_runs_are_timed_with_and_without_a_row(
    scripts: Modules,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    pipeline_folder: Path,
    write_folder: Callable[..., Path],
) -> None:
    """On a small random model: plain training has no monitor, the profile is measured once."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["mitigations.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    timing, rows = scripts.mitigation_timing, scripts.mitigation_rows
    small = {
        "--model.init_args.pretrained": pipeline_folder,
        "--data.init_args.path": write_folder(40),
        "--data.init_args.resolution": 16,
        "--data.init_args.batch_size": 4,
        "--data.init_args.heldout_fraction": 0.4,
        "--data.init_args.duplicates.only_in": "null",
        "--data.init_args.duplicates.count": 2,
    }
    monkeypatch.setattr(timing, "training_arguments", partial(rows.training_arguments, setting=small))
    monkeypatch.setattr(timing, "CYCLE", 2)
    seen: list[list[str]] = []
    fit = Trainer.fit

    def fit_and_note(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        seen.append([type(callback).__name__ for callback in trainer.callbacks])
        fit(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "fit", fit_and_note)
    course = timing.Course(tmp_path, steps=2)
    found = timing.compare(course, rows.ROWS[1], pairs=1)
    assert found["ratio_median"] == pytest.approx(found["seconds"] / found["seconds_plain"])
    assert found["ratio_interval_95"] == [found["ratio_median"]] * 2
    assert list((tmp_path / "profiles").rglob("*.parquet"))
    assert len(course._data) == 1, "images are read and encoded once"
    assert "MemorizationMonitor" not in seen[0]
    assert {"MemorizationMonitor", "SampleReplacement"} <= set(seen[1])
    assert not {"PipelineExport", "ModelCheckpoint"} & set(seen[1])
    assert [names[-1] for names in seen] == ["Stopwatch"] * 2
    assert timing.profile_seconds(course)["seconds"] > 0


def test_scoring_is_compared_with_keeping_every_map(scripts: Modules, pipeline_folder: Path, tmp_path: Path) -> None:
    """Bytes in closed form: steps, halves, heads, image tokens (a quarter in the middle), text tokens, fp16."""
    file = tmp_path / "figures.json"
    found = scripts.detection.main(str(pipeline_folder), steps=2, full_steps=4, repeats=1, json=str(file))
    assert json.loads(file.read_text()) == found
    rows = found["rows"]
    unet = scripts.detection.load(str(pipeline_folder), "own").unet
    sites = {name: module.heads for name, module in unet.named_modules() if name.endswith("attn2")}
    bytes_of = {name: 4 * 2 * heads * (16 if "mid" in name else 64) * 12 * 2 for name, heads in sites.items()}
    assert rows["published"]["kept_bytes"] == sum(bytes_of.values())
    assert rows["one step"]["kept_bytes"] == 4 + 8, "a norm, and two entropies of which one is used"
    assert rows["one step"]["times_less_kept"] > 50
    assert rows["published"]["times_faster"] == 1
