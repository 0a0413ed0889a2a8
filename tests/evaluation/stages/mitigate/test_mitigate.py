"""A mitigation measured: the right images compared, the files written, and what is printed."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from rich.console import Console
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.measures.clip_scores import ClipFeatures
from memtrain.evaluation.measures.pixels import pixel_distance
from memtrain.evaluation.measures.weights import Weights
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.base import StageInput, write_report
from memtrain.evaluation.stages.mitigate import mitigate as stage
from memtrain.evaluation.stages.mitigate import sheet as mitigation_sheet
from memtrain.evaluation.stages.mitigate.mitigate import MINIMUM_OTHERS, mitigate
from memtrain.evaluation.stages.mitigate.screen import print_mitigation
from memtrain.evaluation.stages.mitigate.sheet import write_sheet
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.inference.attention_masking import AttentionMasking

PROMPTS = [PromptToScore(text, truth) for text, truth in (("a cat", True), ("$the_dogs$", False), ("b", None))]
SAMPLING = Sampling(seeds=[0, 3], steps=2, guidance_scale=4.0, batch_size=4, progress=False)


def given(
    pipeline: StableDiffusionPipeline,
    output: Path,
    prompts: list[PromptToScore] = PROMPTS,
    *,
    own_images: Tensor | None = None,
    sampling: Sampling = SAMPLING,
) -> StageInput:
    return StageInput(
        pipeline=pipeline, prompts=prompts, output=output, own_images=own_images, sampling=sampling, model="here"
    )


def load(folder: Path, name: str) -> Tensor:
    with Image.open(folder / name) as image:
        pixels = torch.tensor(list(image.get_flattened_data()), dtype=torch.uint8)
        return pixels.view(image.height, image.width, 3).permute(2, 0, 1)


def test_both_conditions_start_from_the_same_noise(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    masking = AttentionMasking(c1=2.0)
    results = mitigate(given(pipeline, tmp_path), masking, others=1)
    assert json.loads((tmp_path / "mitigation.json").read_text()) == results
    assert results["mitigation"] == "AttentionMasking(c1=2.0, mask=True, hide_eos=False, published=False)"
    rows = pq.read_table(tmp_path / "mitigation.parquet").to_pylist()
    assert [(row["mitigated"], row["prompt"], row["seed"]) for row in rows] == [
        (mitigated, prompt.text, seed) for mitigated in (False, True) for prompt in PROMPTS for seed in (0, 3)
    ]
    texts = [prompt.text for prompt in PROMPTS]
    plain = generate(pipeline, texts, sampling=SAMPLING).images.flatten(0, 1)
    with masking(pipeline):
        masked = generate(pipeline, texts, sampling=SAMPLING).images.flatten(0, 1)
    written = torch.stack([load(tmp_path, row["image"]) for row in rows])
    # A rounding of a pixel may go the other way in a batch of another size.
    assert (written.int() - torch.cat([plain, masked]).int()).abs().max() <= 1
    moved = torch.tensor([row["distance_to_unmitigated"] for row in rows[6:]])
    torch.testing.assert_close(moved, pixel_distance(masked, plain), atol=2e-3, rtol=0)
    assert all(row["distance_to_unmitigated"] is None and row["ratio"] is None for row in rows[:6])
    assert [row["memorized"] for row in rows[:6:2]] == [True, False, None]
    assert set(results["groups"]) == {"memorized", "other", "unknown"}
    assert results["fidelity"]["measure"] == "retrieved" and results["fidelity"]["chance"] == 0.5
    assert {row["fidelity"] for row in rows} <= {0.0, 1.0}
    assert results["reproduction"] == {"reason": "the prompts' own images are not known"}
    seconds = results["seconds_per_image"]
    assert seconds["without"] > 0 and seconds["with"] > 0 and seconds["batches"] == 1


def test_replication_with_and_without(
    pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the second image of the first prompt, without the mitigation, is a copy."""
    count = MINIMUM_OTHERS + 1
    prompts = [PromptToScore(chr(ord("a") + index), index == 0) for index in range(count)]
    noise = torch.Generator().manual_seed(0)
    own, without, mitigated = (
        torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8)
        for shape in ((count, 3, 16, 16), *((count, 2, 3, 16, 16),) * 2)
    )
    without[0, 1] = own[0]
    # No farther from the own image than from others, as the lowest ratio of the others is not.
    mitigated[0] = 128
    monkeypatch.setattr(stage, "_sample", lambda *args, **options: ((without, mitigated), [(1.0, 1.5), (2.0, 3.0)]))
    results = mitigate(given(pipeline, tmp_path, prompts, own_images=own), AttentionMasking(), others=1)
    found = results["groups"]["memorized"]
    assert results["reproduction"]["false_positive_rate"] == 0.05
    assert results["reproduction"]["n_others"] == MINIMUM_OTHERS
    assert found["without"]["reproduced"]["k"] == 1 and found["with"]["reproduced"]["k"] == 0
    assert found["change"]["reproduced"] == {"stopped": 1, "started": 0}
    assert found["without"]["reproduced_images"]["mean"] == 0.5
    rows = pq.read_table(tmp_path / "mitigation.parquet").to_pylist()
    assert [row["reproduced"] for row in rows[:2]] == [False, True] and rows[1]["ratio"] < 0.05
    assert results["groups"]["other"]["without"]["reproduced"]["k"] == 0
    assert results["seconds_per_image"] == {
        "without": 3 / 40,
        "with": 4.5 / 40,
        "ratio": 1.5,
        "ratio_interval": None,
        "batches": 1,
    }
    console = Console(file=io.StringIO(), width=160)
    print_mitigation(results, tmp_path, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 of 1 (21% to 100%)" in text and "1 stopped, 0 started" in text
    assert re.search(r"19 prompts that are not memorized set that\s+threshold at a false-positive rate of 0.05", text)
    assert "For memorized prompts it rewards copies" in text


def test_what_cannot_be_measured_says_why(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    own = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    case = given(pipeline, tmp_path, own_images=own, sampling=replace(SAMPLING, seeds=[0]))
    results = mitigate(case, AttentionMasking())
    assert results["reproduction"] == {"reason": "1 prompts known not to be memorized; a threshold needs 19"}
    assert results["fidelity"]["reason"] == "3 different prompts, at least 5 needed"
    assert results["groups"]["memorized"]["without"]["diversity"] is None
    console = Console(file=io.StringIO(), width=160)
    print_mitigation(results, tmp_path, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Reproduction was not measured: 1 prompts known" in text and "Fidelity was not measured: 3 diff" in text
    assert [row["ratio"] > 0 for row in pq.read_table(tmp_path / "mitigation.parquet").to_pylist()] == [True] * 6


def test_refused_before_sampling(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    masking = AttentionMasking()
    with pytest.raises(ConfigurationError, match="no prompts"):
        mitigate(given(pipeline, tmp_path, []), masking)
    with pytest.raises(DataError, match="3 prompts and 2 own images"):
        own = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        mitigate(given(pipeline, tmp_path, own_images=own), masking)
    with pytest.raises(DataError, match="at least 2"):
        own = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
        mitigate(given(pipeline, tmp_path, own_images=own), masking)
    with pytest.raises(ConfigurationError, match="holds no CLIP model"):
        mitigate(given(pipeline, tmp_path), masking, weights=Weights(clip=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_clip_model_judges_fidelity(pipeline: StableDiffusionPipeline, tmp_path: Path, clip_folder: Path) -> None:
    results = mitigate(given(pipeline, tmp_path), AttentionMasking(), weights=Weights(clip=str(clip_folder)))
    rows = pq.read_table(tmp_path / "mitigation.parquet").to_pylist()
    assert results["fidelity"] == {"measure": "clip_similarity", "model": ClipFeatures(clip_folder).name}
    found = results["networks"]["groups"]
    assert found["memorized"]["A_CLIP"]["all"] != found["memorized"]["without_mask"]["A_CLIP"]["all"]
    assert "distribution_with" not in results["networks"], "no images that were never trained on are known"
    report = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Mitigation while sampling" in report and "A_CLIP" in report
    assert len({row["fidelity"] for row in rows}) > len(PROMPTS) and all(-1 <= row["fidelity"] <= 1 for row in rows)


def test_the_sheet_shows_memorized_prompts_and_others(tmp_path: Path) -> None:
    prompts = [PromptToScore(f"$x_{index}$ 猫", index < 10) for index in range(30)]
    assert mitigation_sheet._rows(prompts) == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13]
    assert mitigation_sheet._rows(prompts[:11]) == list(range(11))
    images = torch.randint(0, 256, (30, 4, 3, 8, 8), dtype=torch.uint8)
    sizes = []
    for own in (None, images[:, 0]):
        write_sheet(tmp_path / "a.png", prompts, without=images, mitigated=images, own_images=own)
        with Image.open(tmp_path / "a.png") as sheet:
            sizes.append(sheet.size)
    assert sizes[1][0] > sizes[0][0] and sizes[0][1] == sizes[1][1]
