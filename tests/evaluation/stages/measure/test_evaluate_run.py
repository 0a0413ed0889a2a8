"""A whole evaluation on a tiny random pipeline, and what it refuses before sampling."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import fields, replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.errors import CalibrationError, DataError
from memtrain.evaluation.measures.weights import Weights
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.base import StageInput, write_report
from memtrain.evaluation.stages.measure.answer import first_sentence
from memtrain.evaluation.stages.measure.evaluate_run import evaluate_run
from memtrain.evaluation.stages.measure.results import Statistics
from memtrain.evaluation.stages.measure.screen import print_results
from memtrain.evaluation.stages.prompts import Prompt
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.families.table import Families
from tests.evaluation.conftest import save_script

SEEDS = (0, 1)
SAMPLING = Sampling(seeds=SEEDS, steps=2, guidance_scale=3.0, batch_size=8, progress=False)
STATISTICS = Statistics(false_positive_rate=0.2, resamples=20)
UNIQUE, HELDOUT, TRAINING = 2, 4, 12


class MeanColour(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def arguments(pipeline: StableDiffusionPipeline) -> dict[str, Any]:
    """Two planted prompts whose training image is what the pipeline makes of them, so that they are copies."""
    captions = [chr(ord("a") + index) * 3 for index in range(2 + UNIQUE + HELDOUT)]
    groups = ["planted"] * 2 + ["unique"] * UNIQUE + ["heldout"] * HELDOUT
    prompts = [Prompt(f"key-{index}", *pair) for index, pair in enumerate(zip(captions, groups, strict=True))]
    copies = generate(pipeline, captions[:2], sampling=SAMPLING).images[:, 1]
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (TRAINING + HELDOUT, 3, 16, 16), dtype=torch.uint8, generator=random)
    training = torch.cat([copies, noise[: TRAINING - 2]])
    keys = [f"key-{index}" for index in range(2 + UNIQUE)] + [f"other-{index}" for index in range(TRAINING - 4)]
    evidence = pa.table(
        {
            "key": keys,
            "caption": ["…"] * TRAINING,
            "visits_per_epoch": [50, 50] + [1] * (TRAINING - 2),
            "visits": [100] * TRAINING,
            "denoising_loss": [-2.0, -1.0] + [0.0] * (TRAINING - 2),
            "attention_entropy.mid": [float(index % 3) for index in range(TRAINING)],
            "score": [5.0, 4.0] + [0.1] * (TRAINING - 2),
            "flagged": [True, False] + [False] * (TRAINING - 2),
            "first_flagged_step": pa.array([40] + [None] * (TRAINING - 1), pa.int64()),
            "skipped": [0.5] + [0.0] * (TRAINING - 1),
        }
    )
    return {
        "prompts": prompts,
        "own_images": torch.cat([training[: 2 + UNIQUE], noise[TRAINING:]]),
        "training_images": training,
        "training_keys": keys,
        "evidence": evidence,
        "heldout": (noise[TRAINING:], captions[-HELDOUT:]),
        "config": {"model": Path("runs/x"), "<key>": [1, float("nan")]},
        "detectors": [GuidanceNorm(), GuidanceNorm(None)],
        "statistics": STATISTICS,
    }


def evaluate(pipeline: StableDiffusionPipeline, output: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """What describes the samples, and what says how they are judged, each to where it belongs."""
    names = {field.name for field in fields(RunSamples)}
    samples = RunSamples(**{name: value for name, value in arguments.items() if name in names})
    given = StageInput(pipeline=pipeline, output=output, sampling=SAMPLING)
    rest = {name: value for name, value in arguments.items() if name not in names}
    return evaluate_run(given, samples, **rest)


@pytest.fixture(scope="module")
def evaluated(
    pipeline: StableDiffusionPipeline, arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The output folder and the returned results."""
    folder = tmp_path_factory.mktemp("evaluation")
    results = evaluate(pipeline, folder, arguments)
    write_report(folder)
    return folder, results


def test_results_have_their_schema(evaluated: tuple[Path, dict[str, Any]]) -> None:
    """What is returned is what is written, as strict JSON."""
    folder, results = evaluated
    text = (folder / "results.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) == results
    assert set(results) == {
        "schema_version",
        "created",
        "versions",
        "dtype",
        "config",
        "sampling",
        "statistics",
        "verdict",
        "families",
        "replication",
        "detectors",
        "training",
        "quality",
    }
    assert results["schema_version"] == 3
    assert set(results["versions"]) == {"memtrain", "torch", "diffusers", "transformers", "python"}
    assert results["config"] == {"model": str(Path("runs/x")), "<key>": [1, None]}
    assert results["sampling"]["seeds"] == [0, 1]
    assert results["sampling"]["images"] == 16
    assert 0 < results["quality"]["heldout_loss"] < 5
    kid = results["quality"]["kid"]
    assert (kid["n_real"], kid["n_generated"], kid["features"]) == (HELDOUT, 2 * HELDOUT, "efficientnet-lite0")
    assert kid["interval"][0] <= kid["value"] <= kid["interval"][1]


def test_copies_are_counted_and_noise_is_not(evaluated: tuple[Path, dict[str, Any]]) -> None:
    """Both planted prompts, in one of their two seeds."""
    replication = evaluated[1]["replication"]
    assert replication["n_heldout"] == HELDOUT
    assert replication["neighbours"] == TRAINING - 1
    planted, unique = replication["groups"]["planted"], replication["groups"]["unique"]
    assert (planted["n"], planted["reproduced"]) == (2, 2)
    assert planted["best_ratio"]["max"] < 0.1 < 0.5 < replication["threshold"]
    assert unique["n"] == UNIQUE
    assert replication["groups"]["heldout"]["reproduced"] == 0
    assert evaluated[1]["verdict"]["level"] == "reproduces"


def test_detectors_and_training_are_compared(evaluated: tuple[Path, dict[str, Any]]) -> None:
    """Both detectors ran on one sampling; the loss separates, the flags found one of two."""
    results = evaluated[1]
    assert set(results["detectors"]) == {"guidance_norm_1", "guidance_norm_all"}
    assert results["detectors"]["guidance_norm_1"]["comparisons"]["planted_vs_heldout"]["negatives"] == HELDOUT
    signals = {signal["column"]: signal["auroc"] for signal in results["training"]["signals"]}
    assert set(signals) == {"denoising_loss", "attention_entropy.mid", "score"}
    assert signals["denoising_loss"] == 1
    assert results["training"]["flags"]["precision"]["share"] == 1
    assert results["training"]["flags"]["recall"]["share"] == 0.5
    sampled = results["training"]["sampled"]
    assert sampled["flagged"] == {"n": 1, "reproduced": 1}
    assert sampled["not_flagged"]["n"] == 1 + UNIQUE
    assert sampled["not_flagged"]["reproduced"] >= 1


def test_samples_have_one_row_per_prompt_and_seed(evaluated: tuple[Path, dict[str, Any]]) -> None:
    """With the training evidence beside it, null for held-out prompts, and images that open."""
    folder, results = evaluated
    table = pq.read_table(folder / "samples.parquet")
    rows = table.to_pylist()
    assert [(row["key"], row["seed"]) for row in rows[:3]] == [("key-0", 0), ("key-0", 1), ("key-1", 0)]
    assert len(rows) == 16
    threshold = results["replication"]["threshold"]
    assert all(row["reproduced"] == (row["ratio"] < threshold) for row in rows)
    assert [rows[index]["ratio"] < 0.1 < rows[index - 1]["ratio"] for index in (1, 3)] == [True, True]
    assert all(row["prompt_reproduced"] for row in rows[:4])
    assert rows[1]["nearest_key"] == "key-0"
    assert rows[1]["nearest_distance"] < 0.1
    assert rows[0]["training.flagged"] is True
    assert rows[0]["training.first_flagged_step"] == 40
    assert rows[-1]["group"] == "heldout"
    assert rows[-1]["training.flagged"] is None
    assert table.schema.field("training.visits").type == pa.int64()
    assert rows[0]["detector.guidance_norm_1"] > 0
    for row in rows:
        for column in ("image", "own_image"):
            with Image.open(folder / row[column]) as image:
                assert image.size == (16, 16)


def test_report_is_written(evaluated: tuple[Path, dict[str, Any]]) -> None:
    """And says the verdict; a configuration key is escaped."""
    text = (evaluated[0] / "report.html").read_text(encoding="utf-8")
    assert f"{evaluated[1]['quality']['kid']['value']:.4f}" in text
    for sentence in first_sentence(evaluated[1]["verdict"]["text"]):
        assert sentence in unescape(text)
    assert "<key>" not in text
    assert "&lt;key&gt;" in text


def test_evaluation_without_record_or_detectors(
    pipeline: StableDiffusionPipeline, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """A model of unknown origin can be evaluated too."""
    bare = {**arguments, "evidence": None, "detectors": (), "config": None, "heldout": None, "kid": False}
    results = evaluate(pipeline, tmp_path / "new" / "folder", bare)
    assert results["training"] is None
    assert results["detectors"] == {}
    assert results["quality"]["heldout_loss"] is None
    report = write_report(tmp_path / "new" / "folder").read_text(encoding="utf-8")
    assert "Flags and signals during training" not in report
    assert results["quality"]["kid"] == {"value": None, "reason": "not asked for"}
    assert "KID was not measured: not asked for" in report


@pytest.mark.parametrize(("convention", "figure"), [("nemo", "SSCD_orig"), ("dcr", "SSCD (dcr)")])
def test_networks_measure_every_group(
    pipeline: StableDiffusionPipeline,
    arguments: dict[str, Any],
    tmp_path: Path,
    clip_folder: Path,
    convention: str,
    figure: str,
) -> None:
    """SSCD, A_CLIP and CLIP-FID, in the results and in the report; without weight files there is no such part."""
    save_script(MeanColour(), tmp_path / "sscd.pt")
    weights = Weights(sscd=str(tmp_path / "sscd.pt"), clip=str(clip_folder), sscd_convention=convention)
    results = evaluate(pipeline, tmp_path / "out", {**arguments, "kid": False, "detectors": (), "weights": weights})
    found = results["networks"]
    assert set(found["groups"]) == {"planted", "unique", "heldout"}
    assert figure in found["groups"]["planted"] and "A_CLIP" in found["groups"]["heldout"]
    if convention == "nemo":
        assert found["groups"]["planted"]["SSCD_orig"]["all"]["median"] == pytest.approx(1, abs=1e-3), "copies"
    assert found["CLIP_FID"]["value"] > 0
    report = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "Figures by networks" in report and figure in report and f"{found['CLIP_FID']['value']:.3f}" in report


def test_the_rate_is_the_lowest_that_can_be_promised() -> None:
    assert Statistics().rate(16) == 1 / 17
    assert Statistics().rate(1000) == 0.01
    assert Statistics(false_positive_rate=0.2).rate(1000) == 0.2


def test_variants_are_one_image_and_templates_one_prompt(
    pipeline: StableDiffusionPipeline, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """The first planted image under three captions, as the data would hold it; the second is planted twice as often."""
    prompts, training = arguments["prompts"], arguments["training_images"]
    variants = [Prompt(f"t#caption{number}", prompts[number].caption, "varied_captions") for number in range(2)]
    keys = [*arguments["training_keys"], "t#caption0", "t#caption1", "t#caption2"]
    copied = training[:1].expand(3, -1, -1, -1)
    more = {
        **arguments,
        "prompts": [*prompts[:2], *variants, *prompts[2:]],
        "own_images": torch.cat([arguments["own_images"][:2], copied[:2], arguments["own_images"][2:]]),
        "training_images": torch.cat([training, copied]),
        "training_keys": keys,
        "templates": dict.fromkeys(keys[-3:], "t"),
        "visits": {"key-0": 50, "key-1": 100, "key-2": 1, "key-3": 1},
        "evidence": None,
        "detectors": (),
    }
    results = evaluate(pipeline, tmp_path / "new", more)
    replication = results["replication"]
    assert replication["n_training_images"] == TRAINING + 1
    assert replication["neighbours"] == TRAINING
    found = replication["groups"]["varied_captions"]
    assert (found["n"], found["prompts"], found["reproduced"]) == (1, 2, 1)
    assert [(dose["repeats"], dose["n"], dose["reproduced"]) for dose in replication["doses"]] == [
        (1, UNIQUE, replication["groups"]["unique"]["reproduced"]),
        (50, 1, 1),
        (100, 1, 1),
    ]
    rows = pq.read_table(tmp_path / "new" / "samples.parquet").to_pylist()
    made = [row for row in rows if row["group"] == "varied_captions"]
    assert {row["picture_family"] for row in made} == {"t"}
    assert {row["picture_family"] for row in rows if row["group"] == "planted"} == {"key-0", "key-1"}
    # Without templates, two copies of the own image would be its neighbours; with them, there is that of key-0 alone.
    nearest = {}
    for name, templates in (("fair", more["templates"]), ("spoiled", None)):
        spoiled = {**more, "templates": templates, "statistics": replace(STATISTICS, neighbours=2)}
        evaluate(pipeline, tmp_path / name, spoiled)
        rows = pq.read_table(tmp_path / name / "samples.parquet").to_pylist()
        nearest[name] = next(r for r in rows if r["key"] == "t#caption0" and r["seed"] == 1)["neighbour_distance"]
    assert nearest["spoiled"] < 0.01 < 0.1 < nearest["fair"]


def test_files_of_a_picture_are_counted_once(
    pipeline: StableDiffusionPipeline, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """The first picture under five names and two captions; the second caption alone brings it back."""
    prompts, training = arguments["prompts"], arguments["training_images"]
    names = [f"copy-{number}" for number in range(4)]
    generated = generate(pipeline, [prompts[0].caption], sampling=SAMPLING).images[0, 1]
    more = {
        **arguments,
        "prompts": [Prompt("copy-0", "z", "repeated"), replace(prompts[0], group="repeated"), *prompts[2:]],
        "own_images": torch.cat([generated.flip(2)[None], arguments["own_images"][:1], arguments["own_images"][2:]]),
        "training_images": torch.cat([training, generated.flip(2)[None], generated.expand(3, -1, -1, -1)]),
        "training_keys": [*arguments["training_keys"], *names],
        "families": Families(dict.fromkeys(["key-0", *names], "key-0")),
        "population": {"repeated": 1, "unique": UNIQUE},
        "visits": None,
        "evidence": None,
        "detectors": (),
        "kid": False,
    }
    results = evaluate(pipeline, tmp_path, more)
    found = results["replication"]["groups"]["repeated"]
    assert (found["n"], found["prompts"], found["reproduced"], found["of"]) == (1, 2, 1, 1)
    assert results["replication"]["n_training_images"] == TRAINING
    assert {name: results["families"][name] for name in ("known", "pictures", "files", "captions")} == {
        "known": True,
        "pictures": 1,
        "files": 5,
        "captions": 0,
    }
    (family,) = results["families"]["asked"]
    assert (family["name"], family["files"], family["captions"], family["reproduced"]) == ("key-0", 5, 2, True)
    unique = results["replication"]["groups"]["unique"]["reproduced"]
    assert (results["verdict"]["reproduced"], results["verdict"]["asked"]) == (1 + unique, 1 + UNIQUE)
    rows = pq.read_table(tmp_path / "samples.parquet").to_pylist()
    assert {row["picture_family"] for row in rows if row["group"] == "repeated"} == {"key-0"}
    assert next(row for row in rows if row["key"] == "key-0" and row["seed"] == 1)["nearest_picture_family"] == "key-0"
    report = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Pictures of several files" in report and "5 files · repeated · key-0" in report


@pytest.mark.parametrize(
    ("spoil", "reason"), [("families", "families_unknown"), ("heldout", "no_threshold"), ("copies", "few_heldout")]
)
def test_what_cannot_be_judged_is_said(
    pipeline: StableDiffusionPipeline,
    arguments: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: str,
    reason: str,
) -> None:
    """Families off, no held-out prompts, and held-out images that are training images: null, on screen and on paper."""
    keep = slice(2, None if spoil != "heldout" else 2 + UNIQUE)
    own = arguments["own_images"][keep].clone()
    if spoil == "copies":
        own[-2:] = arguments["training_images"][-2:]
    more = {
        **arguments,
        "prompts": arguments["prompts"][keep],
        "own_images": own,
        "families": None if spoil == "families" else Families(),
        "statistics": Statistics(resamples=5),
        "heldout": None,
        "evidence": None,
        "detectors": (),
        "kid": False,
    }
    results = evaluate(pipeline, tmp_path, more)
    assert results["verdict"]["cleared"] is None
    assert reason in [one["reason"] for one in results["verdict"]["reasons"]]
    replication = results["replication"]
    counted = {"families": (HELDOUT, 0, 0.2), "heldout": (0, 0, None), "copies": (HELDOUT - 2, 2, pytest.approx(1 / 3))}
    found = replication["n_heldout"], replication["heldout_left_out"], replication["false_positive_rate"]
    assert found == counted[spoil]
    print_results(results, tmp_path)
    assert "cannot be judged on this evidence" in " ".join(capsys.readouterr().out.split())
    assert "Why the model is not cleared" in write_report(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"statistics": Statistics(false_positive_rate=0.05)}, CalibrationError, "at least 19"),
        ({"training_keys": ["x"]}, DataError, "1 training keys"),
        ({"training_keys": [f"other-{index}" for index in range(TRAINING)]}, DataError, r"4 prompt\(s\) of training"),
        ({"training_keys": [f"key-{index}" for index in range(TRAINING)]}, DataError, "4 held-out or excluded prompt"),
        ({"training_images": torch.zeros(TRAINING, 3, 8, 8, dtype=torch.uint8)}, DataError, "cannot be compared"),
    ],
)
def test_refusals_come_before_sampling(
    pipeline: StableDiffusionPipeline,
    arguments: dict[str, Any],
    tmp_path: Path,
    change: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    """With a message that says what is wrong, and without a file."""
    calls = []
    handle = pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(error, match=words):
        evaluate(pipeline, tmp_path / "out", {**arguments, **change})
    handle.remove()
    assert not calls
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_browser_shows_the_report(evaluated: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Headless Chromium draws the page: pictures in colour, and red frames around the copies."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    picture = tmp_path / "report.png"
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    command = [
        *[chromium, *switches, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,2400"],
        *[f"--screenshot={picture}", (evaluated[0] / "report.html").as_uri()],
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 80) & (pixels[..., 2] < 80)
    colours = np.abs(pixels - pixels.mean(-1, keepdims=True)).max(-1) > 40
    assert red.sum() > 200, "frames around reproductions"
    assert colours.sum() > 5000, "pictures"
