"""Names of files: four layouts and a mapping, and what fits none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from memtrain.errors import DataError
from memtrain.evaluation.stages.metrics.layout import memattn_name, read_pictures

PROMPTS = {0: "a cat", 1: "a/b", 3: "a cat", 4: "d"}


def write(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(folder / name)
    return folder


def found(folder: Path, *, originals: bool = False) -> tuple[str, dict[int, list[str]]]:
    read = read_pictures(folder, PROMPTS, originals=originals)
    return read.layout, {row: [file.name for file in read.of(row)] for row in sorted(read.files)}


@pytest.mark.parametrize(
    ("names", "originals", "expected"),
    [
        (["img_0001_01.jpg", "img_0001_00.jpg"], False, ("nemo", {1: ["img_0001_00.jpg", "img_0001_01.jpg"]})),
        (
            ["0003/seed-10.png", "0003/seed-2.png", "0003/own.png"],
            False,
            ("memtrain", {3: ["seed-2.png", "seed-10.png"]}),
        ),
        (["images/0003/seed-2.png", "images/0003/own.png"], True, ("memtrain", {3: ["own.png"]})),
        (["0001_a.jpg", "0001_b.png", "4.jpg"], True, ("numbered", {1: ["0001_a.jpg", "0001_b.png"], 4: ["4.jpg"]})),
        (["img_0004_00.png"], True, ("nemo", {4: ["img_0004_00.png"]})),
        (
            # Two images fell behind: the words decide, and the order of equal words.
            ["0_a_cat.png", "1_a_cat.png", "2_d.png"],
            False,
            ("memattn", {0: ["0_a_cat.png"], 3: ["1_a_cat.png"], 4: ["2_d.png"]}),
        ),
        (["x_seed0/0_a<#>b.png", "x_seed1/0_a<#>b.png"], False, ("memattn", {1: ["0_a<#>b.png"] * 2})),
    ],
)
def test_layouts(tmp_path: Path, names: list[str], originals: bool, expected: tuple[str, dict]) -> None:
    assert found(write(tmp_path, names), originals=originals) == expected


def test_words_of_a_prompt() -> None:
    assert memattn_name("a  b/c") == "a__b<#>c"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no images"),
        (["photo.png"], "1 images, none in a known layout: photo.png"),
        (["img_0000_00.jpg", "0_a_cat.png"], "2 images, 1 like nemo, 1 like memattn"),
        (["img_0000_00.jpg", "photo.png"], "2 images, 1 like nemo"),
        (["img_0002_00.jpg"], "belongs to prompt 2, but the prompts have the rows 0 to 4"),
        (["img_0000_00.jpg", "img_0000_00.png"], "have the same prompt and seed"),
        (["0_d.png", "1_d.png"], "has 2 images of the prompt 'd', but the file of prompts has it only 1 times"),
    ],
)
def test_what_fits_no_layout_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pictures(write(tmp_path, names), PROMPTS)


def test_a_mapping(tmp_path: Path) -> None:
    write(tmp_path, ["x.png", "y.png", "z.png"])
    mapping = tmp_path / "map.csv"
    mapping.write_text("prompt,file\na/b,x.png\n3,y.png\n3,z.png\n")
    read = read_pictures(mapping, PROMPTS)
    assert read.layout == "mapping" and read.of(1) == [tmp_path / "x.png"]
    assert read.of(3) == [tmp_path / "y.png", tmp_path / "z.png"]
    mapping.write_text("prompt,file\nnobody,x.png\n")
    with pytest.raises(DataError, match="line 2: prompt 'nobody'"):
        read_pictures(mapping, PROMPTS)
    mapping.write_text("text,file\na,x.png\n")
    with pytest.raises(DataError, match="has the columns"):
        read_pictures(mapping, PROMPTS)
    with pytest.raises(DataError, match="does not exist"):
        read_pictures(tmp_path / "nothing", PROMPTS)
