"""Folders of images against the formulas of NeMo's scripts, written out here once more over files, and refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import median_low

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.functional.pairwise import pairwise_cosine_similarity
from torchmetrics.image.fid import FrechetInceptionDistance

from memtrain.cli.evaluation import evaluate
from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.measures.nemo_metrics import load_inception
from memtrain.evaluation.stages.metrics.section import sections
from memtrain.evaluation.stages.metrics.stage import Metrics
from tests.evaluation.conftest import save_script

PROMPTS, SEEDS = 12, 4


class Descriptor(nn.Module):
    """Fixed weights over the colours of quarters."""

    def forward(self, images: Tensor) -> Tensor:
        parts = nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        weights = torch.sin(torch.arange(1.0, 97.0)).reshape(12, 8)
        return parts @ weights


class Features(nn.Module):
    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def save(path: Path, generator: torch.Generator, *, size: tuple[int, int] = (16, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = torch.rand(1, 3, 3, 3, generator=generator)
    pixels = (255 * nn.functional.interpolate(coarse, size=size, mode="bilinear")[0]).byte()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generations with and without, two originals of different sizes per prompt but one, and the networks."""
    folder, generator = tmp_path_factory.mktemp("metrics"), torch.Generator().manual_seed(0)
    lines = [";Caption;URL;type"]
    for row in range(PROMPTS):
        lines.append(f"{row};picture {'abcdefghijkl'[row]};http://x;{'VM' if row % 3 == 0 else 'TM'}")
        for seed in range(SEEDS):
            for kind in ("blocked", "plain"):
                save(folder / kind / f"img_{row:04d}_{seed:02d}.jpg", generator)
        for part, size in enumerate(((20, 16), (16, 28), (9, 9))):
            if row == 7:
                continue
            save(folder / "originals" / f"{row:04d}_{part}.png", generator, size=size)
    (folder / "originals" / "0007_dead link.jpg").write_text("<html>gone</html>")
    (folder / "prompts.csv").write_text("\n".join(lines))
    save_script(Descriptor(), folder / "sscd.pt")
    save_script(Features(), folder / "inception.pt")
    return folder


@pytest.fixture(scope="module")
def results(place: Path, clip_folder: Path) -> dict:
    evaluate(
        [
            *("metrics", "--generated", str(place / "blocked"), "--unblocked", str(place / "plain")),
            *("--original", str(place / "originals"), "--prompts", str(place / "prompts.csv")),
            *("--copy_detector", str(place / "sscd.pt"), "--clip", str(clip_folder)),
            *("--inception", str(place / "inception.pt"), "--output", str(place / "found")),
            *("--trust", "torchscript"),
        ]
    )
    return json.loads((place / "found" / "metrics.json").read_text())


def described(path: Path) -> Tensor:
    """As the scripts prepare an image: 320 pixels on both sides, in [0, 1], normalised."""
    pixels = np.asarray(Image.open(path).convert("RGB").resize((320, 320), Image.Resampling.BILINEAR)) / 255
    normal = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    return Descriptor()(torch.from_numpy(normal).permute(2, 0, 1)[None].float())[0]


def load_inception_module(place: Path) -> nn.Module:
    """The file's network with our way to resize images, as torchmetrics takes it."""
    loaded = load_inception(place / "inception.pt")

    class Loaded(nn.Module):
        num_features = 12

        def forward(self, images: Tensor) -> Tensor:
            return loaded(images)

    return Loaded()


def by_hand(place: Path) -> dict[str, dict[int, float]]:
    """The scripts' figures per prompt."""
    found: dict[str, dict[int, float]] = {"SSCD_gen": {}, "SSCD_orig": {}, "SSCD_orig_median": {}, "D_SSCD": {}}
    for row in range(PROMPTS):
        made, plain = (
            torch.stack([described(place / kind / f"img_{row:04d}_{seed:02d}.jpg") for seed in range(SEEDS)])
            for kind in ("blocked", "plain")
        )
        pairs = torch.nn.functional.cosine_similarity(made, plain)
        found["SSCD_gen"][row] = median_low(pairs.tolist())
        among = pairwise_cosine_similarity(made)
        found["D_SSCD"][row] = median_low([float(among[a, b]) for a in range(SEEDS) for b in range(a)])
        if row == 7:
            continue
        real = torch.stack([described(file) for file in sorted((place / "originals").glob(f"{row:04d}_*.png"))])
        best = pairwise_cosine_similarity(real, made).T
        each = [median_low(values.tolist()) for values in best]
        found["SSCD_orig"][row], found["SSCD_orig_median"][row] = max(each), median_low(each)
    return found


def test_figures_are_those_of_the_authors_scripts(place: Path, results: dict) -> None:
    table = {row["row"]: row for row in pq.read_table(place / "found" / "metrics.parquet").to_pylist()}
    for name, values in by_hand(place).items():
        for row, value in values.items():
            assert table[row][name] == pytest.approx(value, abs=1e-5), (name, row)
        groups = {"all": range(PROMPTS), "VM": range(0, PROMPTS, 3), "TM": [r for r in range(PROMPTS) if r % 3]}
        for kind, rows in groups.items():
            numbers = [values[row] for row in rows if row in values]
            middle = median_low(numbers)
            said = results["figures"][name][kind]
            assert said["median"] == pytest.approx(middle, abs=1e-5)
            assert said["mad"] == pytest.approx(median_low([abs(one - middle) for one in numbers]), abs=2e-5)
            assert said["n"] == len(numbers) and said["interval"][0] <= said["median"] <= said["interval"][1]
    assert table[7]["SSCD_orig"] is None


def test_what_is_missing_is_counted(results: dict) -> None:
    read = results["images"]
    assert read["layout"] == "nemo" and read["generated"] == 48 and read["originals"] == 34
    assert read["prompts_without_original"] == 1 and read["rows_without_original"] == [7]
    assert read["unreadable"] == ["0007_dead link.jpg"] and results["left_out"] == {}


def test_distances_are_torchmetrics_own(place: Path, results: dict) -> None:
    metric = FrechetInceptionDistance(load_inception_module(place))
    for real, pattern in ((True, "originals/*.png"), (False, "blocked/*.jpg")):
        for file in sorted(place.glob(pattern)):
            metric.update(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None], real=real)
    found = results["quality"]["FID"]
    assert found["value"] == pytest.approx(float(metric.compute()), rel=1e-4)
    assert found["n_real"] == 33 and found["n_generated"] == 48 and "biased" in found["note"]
    assert {"KID", "CLIP_FID", "FID_unblocked", "KID_unblocked", "CLIP_FID_unblocked"} < set(results["quality"])


def test_table_for_spreadsheets_and_section(place: Path, results: dict) -> None:
    with (place / "found" / "metrics.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == PROMPTS and rows[3]["prompt"] == "picture d" and rows[3]["kind"] == "VM"
    (section,) = sections(place / "found")
    for shown in ("SSCD_gen", "KID", "Split by the column", "1 of 12 prompts have no original"):
        assert shown in section.body
    assert sections(place) == []


@pytest.mark.parametrize(
    ("name", "figure"), [("dcr", "percentile_95"), ("wen", "mean"), ("membench", "share_above_0.5")]
)
def test_other_conventions_have_their_own_figures(place: Path, tmp_path: Path, name: str, figure: str) -> None:
    stage = Metrics(
        generated=str(place / "blocked"),
        prompts=str(place / "prompts.csv"),
        original=str(place / "originals"),
        copy_detector=str(place / "sscd.pt"),
        sscd_convention=name,  # type: ignore[arg-type]
        output=str(tmp_path),
    )
    results = stage.work()
    assert results["convention"]["name"] == name and figure in results["convention"]["figures"]
    assert "SSCD_orig" not in results["figures"] and "pixels_orig" in results["figures"]


def test_seeds_have_to_be_the_same(place: Path, tmp_path: Path) -> None:
    save(tmp_path / "plain" / "img_0000_00.jpg", torch.Generator())
    common = {"prompts": str(place / "prompts.csv"), "output": str(tmp_path / "out")}
    stage = Metrics(generated=str(place / "blocked"), unblocked=str(tmp_path / "plain"), **common)
    with pytest.raises(DataError, match=r"Prompt 0 has the seeds \[0, 1, 2, 3\] with the mitigation and \[0\]"):
        stage.work()


def test_a_command_without_images_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="metrics without --generated"):
        Metrics(prompts="x").check()
    with pytest.raises(ConfigurationError, match="inception without images"):
        Metrics(generated="x", prompts="x", inception="x").check()
