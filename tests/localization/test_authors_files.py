"""Files of the published scripts: read without running code, named by the model's layers, written as they read them."""

from __future__ import annotations

import csv
import pickle
import re
from pathlib import Path

import pytest
import torch

from memtrain.errors import ConfigurationError
from memtrain.localization.authors_files import read_statistics, write_statistics, write_table
from memtrain.localization.found import Found
from memtrain.localization.locate import locate
from memtrain.localization.predictor import Predictor
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics

from .conftest import FEW, THRESHOLD


def test_their_file_gives_the_neurons_that_ours_gives(
    predictor: Predictor, statistics: ActivationStatistics, tmp_path: Path
) -> None:
    write_statistics(statistics, tmp_path / "theirs.pt")
    mean, std = torch.load(tmp_path / "theirs.pt", weights_only=True)
    assert [len(layer) for layer in mean] == [len(layer) for layer in std] == [8, 16, 16]
    read = read_statistics(tmp_path / "theirs.pt", predictor)
    assert list(read.mean) == list(predictor.sites())
    options = {"threshold": THRESHOLD, "settings": Settings(**FEW)}
    ours = locate(predictor, ["memorized 0"], statistics=statistics, **options)
    theirs = locate(predictor, ["memorized 0"], statistics=read, output=tmp_path / "search", **options)
    assert theirs.found[0].refined == ours.found[0].refined
    assert theirs.search["statistics_from"] == "an unstated number of prompts, the file theirs.pt"
    statistics.save(tmp_path / "ours.safetensors")
    again = read_statistics(tmp_path / "ours.safetensors", predictor)
    assert all(torch.equal(again.mean[site], read.mean[site]) for site in read.mean)


def test_activations_without_statistics_are_summed_up(predictor: Predictor, tmp_path: Path) -> None:
    drawn = [torch.rand(5, width) for width in (8, 16, 16)]
    torch.save(drawn, tmp_path / "raw.pt")
    read = read_statistics(tmp_path / "raw.pt", predictor)
    assert read.count == 5
    for layer, site in zip(drawn, read.mean, strict=True):
        torch.testing.assert_close(read.mean[site], layer.mean(dim=0))
        torch.testing.assert_close(read.std[site], layer.std(dim=0))


class Hostile:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("hostile"),)


def test_what_is_no_statistics_of_this_model_is_refused(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(([torch.ones(320)] * 7, [torch.ones(320)] * 7), tmp_path / "larger.pt")
    with pytest.raises(ConfigurationError, match=r"7 layers of .* the model has 3 of \[8, 16, 16\]"):
        read_statistics(tmp_path / "larger.pt", predictor)
    torch.save({"mean": torch.ones(3)}, tmp_path / "other.pt")
    torch.save(([torch.ones(3)], [torch.ones(4)]), tmp_path / "unequal.pt")
    (tmp_path / "text.pt").write_text("not a tensor")
    (tmp_path / "hostile.pt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    for name in ("other", "unequal", "text", "hostile", "absent"):
        with pytest.raises(ConfigurationError, match="holds no activation statistics"):
            read_statistics(tmp_path / f"{name}.pt", predictor)
    assert not (tmp_path / "hostile").exists()


def published_reader(text: str) -> list[list[int]]:
    """How the published script reads a list of lists: every shortest run from `[` to `]`."""
    return [list(map(int, re.findall(r"\d+", part))) for part in re.findall(r"\[.*?\]", text)]


def test_the_table_is_read_back_as_the_published_script_reads_it(tmp_path: Path) -> None:
    common = {"similarity": 0.9, "kept_seeds": 1, "calls": 1, "images": 1, "seconds": 0.0}
    lists = ((3, 1), (), (20,))
    found = Found(prompt="a; b", initial=lists, initial_score=0.4, refined=((1,), (), ()), score=0.3, **common)
    none = Found(prompt="c", **{**common, "kept_seeds": 0})
    write_table(tmp_path / "table.csv", [("a; b", found), ("c", none)], ["x", "y", "z"])
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    assert [row["Caption"] for row in rows] == ["a; b", "c"]
    assert published_reader(rows[0]["Initial Neurons"]) == [[3, 1], [], [20]]
    assert published_reader(rows[0]["Refined Neurons"]) == [[1], [], []]
    assert published_reader(rows[1]["Refined Neurons"]) == [[], [], []]
    assert (rows[0]["Initial SSIM"], rows[1]["Refined SSIM"]) == ("0.4", "0")
