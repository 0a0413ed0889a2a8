"""What NeMo's scripts do, by command: their mode and file, repeated prompts, tables by line, images by condition."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from memtrain import cli
from memtrain.cli.evaluation import read_command
from memtrain.evaluation.stages.localize.baseline_names import BASELINES
from memtrain.localization.results import load_masks
from memtrain.localization.settings import Settings

LINES = ["a b", "c d", "a b", "e"]
SEARCH = ["--settings.seeds", "3", "--settings.most_k", "2", "--threshold", "-1", "--probe_steps", "0"]
SAMPLING = ["--steps", "2", "--images_per_prompt", "2", "--seed", "5"]


@pytest.fixture(scope="module")
def searched(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder of results, and the command; the second and fourth line are alike."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "prompts.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    (folder / "ordinary.txt").write_text("f g\nh\ni j k\n", encoding="utf-8")
    model = ["--model", str(pipeline_folder), "--output", str(folder / "calibrated")]
    export = ["--export", str(folder / "theirs.pt"), "--settings.seeds", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        cli.evaluate(["calibrate", *model, "--prompts", str(folder / "ordinary.txt"), *export])
        words = ["localize", "--model", str(pipeline_folder), "--prompts", str(folder / "prompts.txt"), *SEARCH]
        words += [*SAMPLING, "--published", "true", "--statistics", str(folder / "theirs.pt")]
        words += ["--baselines", "all", "--baseline_k", "2", "--save_images", "true"]
        cli.evaluate([*words, "--output", str(folder / "out")])
    return folder / "out", words


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_mode_and_their_statistics_reach_the_search(searched: tuple[Path, list[str]]) -> None:
    folder, _ = searched
    search = json.loads((folder / "localization.json").read_text())["search"]
    settings = search["settings"]
    assert (settings["call"], settings["data_range"], settings["cropped"], settings["slack"]) == (1, None, True, 0.0)
    assert (settings["seeds"], settings["most_k"], search["threshold"]) == (3, 2, -1.0)
    assert search["statistics_from"].endswith("the file theirs.pt")
    mean, _ = torch.load(folder.parent / "theirs.pt", weights_only=True)
    assert len(mean) == len(search["sites"])


def test_a_repeated_prompt_is_searched_once_and_reported_for_each_line(searched: tuple[Path, list[str]]) -> None:
    folder, _ = searched
    results = json.loads((folder / "localization.json").read_text())
    assert (results["prompts"]["asked"], results["prompts"]["lines"]) == (3, 4)
    assert len(list((folder / "neurons" / "prompts").iterdir())) == 3
    pairs = pq.read_table(folder / "pairwise.parquet").to_pylist()
    assert [row["prompt"] for row in pairs] == LINES
    assert [key for key in pairs[0] if key.startswith("ssim_")] == ["ssim_0_1", "ssim_0_2", "ssim_1_2"]
    for row in pairs:
        assert row["highest"] == pytest.approx(max(row["ssim_0_1"], row["ssim_0_2"], row["ssim_1_2"]), abs=1e-6)
    assert {key: value for key, value in pairs[0].items() if key != "line"} == {
        key: value for key, value in pairs[2].items() if key != "line"
    }
    assert [row["line"] for row in table(folder / "pairwise.csv")] == ["0", "1", "2", "3"]


def test_neurons_are_there_as_data(searched: tuple[Path, list[str]]) -> None:
    folder, _ = searched
    masks, prompts = (
        load_masks(folder / "masks.safetensors"),
        json.loads((folder / "neurons.json").read_text())["prompts"],
    )
    rows = table(folder / "neurons.csv")
    assert [prompt["prompt"] for prompt in prompts] == LINES
    for prompt in prompts:
        mask = masks[prompt["prompt"]].channels
        assert {site: list(neurons) for site, neurons in mask.items()} == prompt["refined"]
        mine = [row for row in rows if row["line"] == str(prompt["line"]) and row["set"] == "refined"]
        assert [(row["site"], int(row["neuron"])) for row in mine] == [
            (site, neuron) for site, neurons in prompt["refined"].items() for neuron in neurons
        ]
    theirs = (folder / "memorization_statistics.csv").read_text().splitlines()
    assert theirs[0].startswith("Caption;URL;Initial Neurons;") and len(theirs) == 5


def test_images_of_every_condition_lie_in_folders(searched: tuple[Path, list[str]]) -> None:
    folder, _ = searched
    conditions = {"original", "refined", "all_masks", *BASELINES}
    assert {path.name for path in (folder / "images").iterdir() if path.is_dir()} == conditions
    for name in conditions:
        found = sorted(
            str(path.relative_to(folder / "images" / name)) for path in (folder / "images" / name).rglob("*.png")
        )
        assert found == [f"{line:04d}/seed-{seed}.png" for line in (0, 1, 3) for seed in (5, 6)]
    with Image.open(folder / "images" / "original" / "0000" / "seed-5.png") as one:
        assert one.size == (16, 16)
    assert [row["folder"] for row in table(folder / "images" / "prompts.csv")] == ["0000", "0001", "0000", "0003"]
    figures = json.loads((folder / "localization.json").read_text())
    assert set(figures["conditions"]) == {"unmasked", "masked", "all masks", *BASELINES}
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "frequent_sets" in report and "down 0.0" in report and "Neurons per prompt" in report


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--baselines", "initial,frequents"], "no baseline 'frequents'"),
        (["--statistics", "absent.pt"], "holds no activation statistics"),
        (["--contribution", "0.4"], "NeMo's search"),
        (["--baseline_k", "0"], "baseline_k=0"),
        (["--settings.sites", "mid*", "--sites", "*"], "one pattern"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_model_is_loaded(
    searched: tuple[Path, list[str]], options: list[str], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, words = searched
    monkeypatch.setattr("memtrain.cli.trained_pipeline.TrainedPipeline.load", None)
    with pytest.raises(SystemExit, match=match):
        cli.evaluate([*words, "--output", str(tmp_path), *options])


def test_the_overlay_of_the_published_mode_is_that_of_the_settings() -> None:
    words = ["localize", "--config", "configs/localize/published.yaml", "--model", "m", "--prompts", "p"]
    stage = read_command([*words, "--settings.initial_theta", "null"])
    assert stage.search_settings == Settings.published(sequential=False, initial_theta=None)
    assert (stage.threshold, stage.sampling.seeds[0], len(stage.sampling.seeds)) == (0.428, 2, 10)
