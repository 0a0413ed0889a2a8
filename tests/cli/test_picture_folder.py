"""A model and a folder without a run: pictures with captions, with none, with held-out ones, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from memtrain import cli
from memtrain.cli import training_pictures
from memtrain.cli.picture_folder import PictureFolder, pipeline_size
from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.stages.many_images import Bounds
from memtrain.records import HELDOUT, MADE_CAPTION, REPEATED, UNIQUE

WORDS = ["red", "blue", "old", "tall", "wet", "dry", "soft", "loud", "near", "far", "cold", "warm"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of noise with captions, the first of them in three files."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(12):
        if number not in (1, 2):
            image = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        elif number == 1:
            image = Image.open(folder / "00.png")
        image.save(folder / f"{number:02}.png")
        text = f"a {WORDS[number]} {WORDS[-number]} thing seen {WORDS[number - 3]}"
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def plain(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without captions."""
    folder = tmp_path_factory.mktemp("plain")
    for path in pictures.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def asked(folder: PictureFolder) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for prompt in folder.samples(most=9, unique=5).prompts:
        found.setdefault(prompt.group, []).append((prompt.key, prompt.caption))
    return found


def test_repeated_pictures_are_asked_for_first_and_made_captions_are_the_null(pictures: Path) -> None:
    folder = PictureFolder(str(pictures), None, None, 16, "m")
    found = asked(folder)
    assert list(found) == [REPEATED, UNIQUE, MADE_CAPTION]
    assert {key for key, _ in found[REPEATED]} <= {"00.png", "01.png", "02.png"} and len(found[UNIQUE]) == 5
    texts = {path.read_text() for path in pictures.glob("*.txt")}
    assert len(found[MADE_CAPTION]) == 40 and not texts & {text for _, text in found[MADE_CAPTION]}
    samples = folder.samples(most=9, unique=5)
    assert len(samples.training_keys) == 12 and samples.population is not None
    assert samples.population[REPEATED] == 1 and samples.population[UNIQUE] == 9
    assert samples.picture("02.png") == samples.picture("00.png") != samples.picture("03.png")


def test_pictures_without_captions_share_a_prompt_and_are_each_asked_for(plain: Path, pictures: Path) -> None:
    """Held-out ones too, although they have captions: their null would be another one."""
    found = asked(PictureFolder(str(plain), str(pictures), None, 16, "m"))
    assert {text for group in found.values() for _, text in group} == {""}
    assert len(found[UNIQUE]) == 5 and len(found[REPEATED]) == 1
    assert all(key.startswith("heldout/") for key, _ in found[HELDOUT]), "files of the same names in both folders"
    said = asked(PictureFolder(str(plain), None, "a thing", 16, "m"))
    assert {text for group in said.values() for _, text in group} == {"a thing"}
    assert MADE_CAPTION not in said, "nothing can be made of one caption"


def test_the_size_is_the_pipelines_own_unless_it_is_named(pipeline: StableDiffusionPipeline) -> None:
    assert pipeline_size(pipeline) == 16
    folder = PictureFolder("x", None, None, None, "m")
    assert folder.at(pipeline).size == 16
    named = PictureFolder("x", None, None, 24, "m")
    assert named.at(pipeline).size == 24


def test_many_training_images_lie_in_a_file(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pixels as in memory, read once, and again for a picture that has changed."""
    folder = PictureFolder(str(pictures), None, None, 16, "m")
    expected = folder.samples(most=1, unique=1).training_images
    assert (folder.samples(most=1, unique=1, store=tmp_path / "few").training_images == expected).all()
    assert not (tmp_path / "few").exists()
    monkeypatch.setattr(training_pictures, "IN_MEMORY", 1000)
    for _ in range(2):
        found = folder.samples(most=1, unique=1, store=tmp_path / "many").training_images
        assert found.dtype == expected.dtype and (found == expected).all()
    assert (tmp_path / "many" / "images.safetensors").stat().st_size >= expected.numel()


def test_of_very_many_training_images_a_part_is_compared_with(pictures: Path, tmp_path: Path) -> None:
    """It holds the pictures that are asked for and their nearest; each image is described once."""
    folder = PictureFolder(str(pictures), None, None, 16, "m")
    everything = folder.samples(most=1, unique=3)
    bounds = Bounds(most=8, index=tmp_path / "index")
    found = folder.samples(most=1, unique=3, store=tmp_path / "store", bounds=bounds)
    assert found.part is not None and len(found.training_keys) < len(found.every_key)
    assert list(found.every_key) == list(everything.training_keys)
    assert [prompt.key for prompt in found.prompts] == [prompt.key for prompt in everything.prompts]
    place = {key: row for row, key in enumerate(everything.training_keys)}
    for key, image in zip(found.training_keys, found.training_images, strict=True):
        assert (image == everything.training_images[place[key]]).all()
    assert {prompt.key for prompt in found.prompts if prompt.key in place} <= set(found.training_keys)
    made = [(path, path.stat().st_mtime_ns) for path in (tmp_path / "index").glob("*/looks.safetensors")]
    folder.samples(most=1, unique=3, store=tmp_path / "store", bounds=bounds)
    assert made == [(path, path.stat().st_mtime_ns) for path in (tmp_path / "index").glob("*/looks.safetensors")]
    generated = everything.training_images[None, -2:]
    wider = found.with_candidates(generated, tmp_path / "store")
    assert set(found.training_keys) <= set(wider.training_keys)
    assert set(everything.training_keys[-2:]) <= set(wider.training_keys)
    assert (wider.usual_images == found.usual_images).all()


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        PictureFolder(str(tmp_path / "nowhere"), None, None, None, "m").check()
    with pytest.raises(DataError, match="No captioned image was found"):
        PictureFolder(str(tmp_path), None, None, None, "m").check()
    with pytest.raises(ConfigurationError, match="Nothing says which captions"):
        PictureFolder(str(tmp_path), None, None, None, "m").known_prompts(most=1)


@pytest.mark.slow
def test_a_model_is_measured_on_a_folder(
    pictures: Path,
    pipeline_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)
    words = ["--model", str(pipeline_folder), "--data", str(pictures), "--steps", "5", "--images_per_prompt", "3"]
    cli.evaluate(["measure", *words, "--detectors", "none", "--kid", "false"])
    output = tmp_path / "runs" / "evaluation" / pipeline_folder.name
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert results["config"] == {"model": str(pipeline_folder), "data": str(pictures), "heldout": None}
    replication = results["replication"]
    assert (replication["n_heldout"], replication["calibrated_by"]) == (40, MADE_CAPTION)
    assert list(replication["groups"]) == [REPEATED, UNIQUE]
    assert results["verdict"]["asked"] == 10 and results["verdict"]["cleared"] is not False
    rows = pq.read_table(output / "samples.parquet").to_pylist()
    assert len(rows) == 3 * (2 + 9 + 40), "of a picture of three files two captions"
    assert "captions that were made of the data's words" in " ".join(capsys.readouterr().out.split())
    assert (output / "report.html").is_file()
