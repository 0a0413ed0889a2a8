"""What a run knows of its prompts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import memtrain.files.shipped as shipped
from memtrain.cli import run_folder
from memtrain.cli.asked_pictures import Asked, choose_prompts
from memtrain.cli.run_folder import FinishedRun, excluded_images, known_prompts, run_data
from memtrain.cli.run_pictures import Pictures, read_families
from memtrain.data.module import TextImageDataModule
from memtrain.data.source import open_source
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.families.table import Families
from memtrain.records import EXCLUDED, FLAGGED, HELDOUT, MADE_CAPTION, PLANTED, REPEATED, SHARED_CAPTION, UNIQUE
from tests.conftest import ROOT


def test_each_caption_is_there_once_and_a_planted_one_as_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    def dataset(captions: list[str], brightness: float) -> Any:
        return SimpleNamespace(
            samples=[SimpleNamespace(caption=caption) for caption in captions],
            pixel_values=lambda row: torch.full((3, 2, 2), brightness + row / 10),
        )

    train, held = dataset(["a", "b"], 0.0), dataset(["c", "b", "c", "d"], -1.0)
    chosen = [Asked(PLANTED, train, [0, 1], 2), Asked(HELDOUT, held, [0, 1, 2, 3], 4)]
    monkeypatch.setattr(run_folder, "choose_prompts", lambda pictures, **options: chosen)
    pictures: Any = None
    prompts, images = known_prompts(pictures, most=9)
    expected = [("a", True), ("b", True), ("c", False), ("d", False)]
    assert prompts == [PromptToScore(text, truth) for text, truth in expected]
    brightness = [0.0, 0.1, -1.0, -0.7]
    assert images[:, 0, 0, 0].tolist() == [round((value + 1) * 127.5) for value in brightness]


def test_a_run_of_shipped_data_is_read_from_another_folder_and_in_another_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"path": "assets/emoji-heldout.tar", "resolution": 8, "families": "off"}
    config = {"data": {"class_path": "memtrain.data.module.TextImageDataModule", "init_args": options}}
    for name in ("run", "elsewhere", "environment/assets"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(ROOT / "assets/emoji-heldout.tar", tmp_path / "environment/assets")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(shipped, "shipped_folder", lambda: tmp_path / "environment")
    found, data = run_data(Path("../run"))
    assert found == config
    assert data.path == "assets/emoji-heldout.tar"
    assert data.train_dataset is not None and data.heldout_dataset is not None
    assert len(data.train_dataset.samples) + len(data.heldout_dataset.samples) == 214


def keys_of(found: list[Asked]) -> dict[str, list[str]]:
    return {one.group: [one.dataset.samples[row].key for row in one.rows] for one in found}


def test_flagged_and_excluded_images_are_asked_for_too(write_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_folder(40)
    keys = sorted(sample.key for sample in open_source(str(folder)).samples)
    (tmp_path / "earlier.csv").write_text("key\n" + "\n".join(keys[:5]) + "\n")
    options = {
        "path": str(folder),
        "heldout_fraction": 0.2,
        "exclude": str(tmp_path / "earlier.csv"),
        "duplicates": {"class_path": "memtrain.data.selection.Duplicates", "init_args": {"count": 2, "repeats": 3}},
        "resolution": 8,
        "families": "off",
    }
    config = {"data": {"class_path": "memtrain.data.module.TextImageDataModule", "init_args": options}}
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    config, data = run_data(run)
    once = sorted(key for key, group in data.groups.items() if group == UNIQUE)
    found = choose_prompts(
        Pictures(data), most=3, unique=6, flagged={*once, "unknown"}, excluded=excluded_images(run, config, data)
    )
    asked = keys_of(found)
    assert [len(asked[name]) for name in (UNIQUE, FLAGGED)] == [6, 3]
    assert not set(asked[UNIQUE]) & set(asked[FLAGGED])
    assert set(asked[UNIQUE] + asked[FLAGGED]) <= set(once)
    held = {key for key, group in data.groups.items() if group == HELDOUT}
    assert set(asked[EXCLUDED]) <= set(keys[:5]) - held
    assert len(asked[EXCLUDED]) == min(3, len(set(keys[:5]) - held))
    assert found[-1].group == HELDOUT
    plain = keys_of(choose_prompts(Pictures(data), most=3, unique=6))
    assert plain[UNIQUE] == asked[UNIQUE]
    assert not plain[FLAGGED]
    assert not asked[REPEATED] and not asked[SHARED_CAPTION], "nobody has looked for families"
    assert EXCLUDED not in plain


@pytest.fixture
def run_of(write_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """The folder of a run on captions by name, which holds out `held`; the key of a name ends in .png."""

    def make(captions: dict[str, str], held: dict[str, str], **options: Any) -> Path:
        settings = {
            "path": str(write_folder({f"{name}.png": text for name, text in captions.items()})),
            "heldout_path": str(write_folder({f"{name}.png": text for name, text in held.items()}, name="held")),
            "resolution": 8,
            "families": "off",
            **options,
        }
        run = tmp_path / "run"
        (run / "records").mkdir(parents=True)
        config = {"data": {"class_path": "memtrain.data.module.TextImageDataModule", "init_args": settings}}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        return run

    return make


def write_families(run: Path, pictures: dict[str, str], captions: dict[str, str], keys: list[str]) -> None:
    families = [{f"{key}.png": f"{name}.png" for key, name in found.items()} for found in (pictures, captions)]
    Families(*families).write(run / "records" / "families.parquet", [f"{key}.png" for key in keys])


def names_of(found: list[Asked]) -> dict[str, list[str]]:
    return {group: [key.removesuffix(".png") for key in keys] for group, keys in keys_of(found).items()}


def test_each_picture_is_asked_once_under_its_commonest_captions(run_of: Callable[..., Path]) -> None:
    """A picture of five files under three captions, one of two, and what stands alone."""
    captions = {"a0": "x", "a1": "X ", "a2": "y", "a3": "y", "a4": "z", "b0": "q", "b1": "q", "c": "c", "d": "d"}
    held = {"h0": "h0", "h1": "h1", "h2": "h2", "h3": "h3"}
    run = run_of(captions, held)
    pictures = {name: "a0" for name in captions if name[0] == "a"} | {"b0": "b0", "b1": "b0", "h0": "c"}
    pictures |= {"c": "c", "h2": "h2", "h3": "h2"}
    write_families(run, pictures, {}, [*captions, *held])
    finished = FinishedRun.read(run)
    families, missing = read_families(run, finished.data)
    assert missing == 0
    found = choose_prompts(Pictures(finished.data, families), most=9, unique=9)
    asked = names_of(found)
    assert sorted(captions[name].strip().lower() for name in asked[REPEATED]) == ["q", "x", "y"]
    assert asked[UNIQUE] == ["c", "d"]
    assert {one.group: one.of for one in found}[REPEATED] == 2
    # h0 is the picture of c, and h2 and h3 are one.
    assert asked[HELDOUT] in (["h1", "h2"], ["h1", "h3"])
    largest = names_of(choose_prompts(Pictures(finished.data, families), most=1, unique=9))
    assert {key[0] for key in largest[REPEATED]} == {"a"}
    samples = finished.samples(most=1, unique=9)
    assert samples.population is not None
    assert (samples.population[REPEATED], samples.heldout_left_out, samples.not_looked_at) == (2, 1, 0)
    assert (samples.picture("a3.png"), samples.caption("a3.png")) == ("a0.png", "a3.png")


def test_a_caption_of_several_pictures_is_asked_once(run_of: Callable[..., Path]) -> None:
    """Unless a picture of several files has it, whose prompt it is; a planted one's is a planted prompt."""
    captions = {"a": "s", "b": "s", "c": "s", "d": "t", "e": "t", "e1": "t", "f": "u", "g": "u", "i": "i"}
    run = run_of(
        captions,
        {"h": "h"},
        duplicates={
            "class_path": "memtrain.data.selection.Duplicates",
            "init_args": {"keys": ["f.png"], "repeats": 3},
        },
    )
    families = {"a": "a", "b": "a", "c": "a", "d": "d", "e": "d", "e1": "d", "f": "f", "g": "f"}
    write_families(run, {"e": "e", "e1": "e"}, families, [*captions, "h"])
    finished = FinishedRun.read(run)
    found = choose_prompts(Pictures(finished.data, read_families(run, finished.data)[0]), most=9, unique=9)
    asked = names_of(found)
    assert len(asked[SHARED_CAPTION]) == 1 and asked[SHARED_CAPTION][0] in "abc"
    assert asked[PLANTED] == ["f"]
    assert len(asked[REPEATED]) == 1 and asked[REPEATED][0] in ("e", "e1")
    assert asked[UNIQUE] == ["i"]
    assert {one.group: one.of for one in found}[SHARED_CAPTION] == 1


def test_an_excluded_file_of_a_picture_that_was_trained_on_is_not_asked_as_excluded(
    run_of: Callable[..., Path],
) -> None:
    run = run_of(dict(zip("abcd", "abcd", strict=True)), {"h": "h"}, exclude=["a.png", "c.png"])
    write_families(run, {"a": "a", "b": "a"}, {}, [*"abcd", "h"])
    finished = FinishedRun.read(run)
    samples = finished.samples(most=9, unique=9)
    assert [prompt.key for prompt in samples.prompts if prompt.group == EXCLUDED] == ["c.png"]


def test_files_that_the_table_does_not_have_are_counted(run_of: Callable[..., Path]) -> None:
    run = run_of(dict(zip("abcd", "abcd", strict=True)), {"h": "h"})
    data = FinishedRun.read(run).data
    assert read_families(run, data) == (None, 0)
    write_families(run, {}, {}, ["a", "b"])
    assert read_families(run, data)[1] == 2


def test_what_training_scanned_is_read_again(run_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """From `families` in the run folder, unless the configuration names another place."""
    run = run_of(dict(zip("abcd", "abcd", strict=True)), {"h": "h"}, families="auto")
    seen = []
    monkeypatch.setattr(TextImageDataModule, "build", lambda data: seen.append(data.scan.folder))
    run_data(run)
    (run / "families").mkdir()
    run_data(run)
    assert seen == [None, str(run / "families")]


def test_edited_copies_are_no_held_out_prompts(run_of: Callable[..., Path]) -> None:
    captions = {f"p{number}": f"caption {number}" for number in range(12)}
    run = FinishedRun.read(run_of(captions, {"unused": "unused"}, heldout_path=None, heldout="edited"))
    assert len(run.data.heldout_dataset.samples) == len(run.data.copied_from) > 0
    samples = run.samples(most=20, unique=20)
    assert {prompt.group for prompt in samples.prompts} == {UNIQUE, MADE_CAPTION}
    assert samples.heldout is None


def test_a_run_with_every_form_of_data_is_built_again_in_one_size(tmp_path: Path) -> None:
    for folder, count in (("photos", 30), ("dogs", 30)):
        for number in range(count):
            path = tmp_path / folder / ("5_near" if number < 3 else "far") / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((20 + 5 * (number % 3), 24), 40).convert("RGB").save(path)
            if folder == "photos":
                path.with_suffix(".txt").write_text(f"thing {number}, red\nanother text {number}")
    options = {
        "path": str(tmp_path / "photos"),
        "resolution": 16,
        "families": "off",
        "buckets": {"step": 8},
        "augment": {"random_crop": True, "random_flip": True, "variants": 3},
        "cache": {"folder": str(tmp_path / "cache")},
        "captions": {"choose": "random", "trigger": "sks"},
        "repeats": "from_folders",
        "regularisation": {"path": str(tmp_path / "dogs"), "caption": "a dog"},
        "heldout": "regularisation",
    }
    config = {"data": {"class_path": "memtrain.data.module.TextImageDataModule", "init_args": options}}
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    _, data = run_data(run)
    assert not (tmp_path / "cache").exists()
    pictures = Pictures(data)
    assert len(pictures.in_group("regularisation")) == 20
    assert not pictures.shared_beside([])
    found = FinishedRun(run, config, data).samples(most=5, unique=40)
    assert {prompt.group for prompt in found.prompts} == {UNIQUE, HELDOUT}
    assert len(found.prompts) == 30 + 1, "all regularisation images have one caption"
    assert all(prompt.caption.startswith("sks, thing") for prompt in found.prompts if prompt.group == UNIQUE)
    assert found.training_images.shape[1:] == (3, 16, 16)
    assert found.visits["5_near/00.png"] == 5
