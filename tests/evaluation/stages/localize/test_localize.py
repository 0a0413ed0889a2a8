"""The stage end to end on a random pipeline, and its figures by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from rich.console import Console

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.measures.weights import Weights
from memtrain.evaluation.sampling.embedding_samples import sample_embeddings
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.base import StageInput, write_report
from memtrain.evaluation.stages.localize import localize as localization
from memtrain.evaluation.stages.localize.conditions import change_of_loss, neuron_figures, verdict
from memtrain.evaluation.stages.localize.localize import localize
from memtrain.evaluation.stages.localize.screen import print_localization
from memtrain.evaluation.stages.localize.search import Search
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.functional.ranking import share
from memtrain.localization.found import Found
from memtrain.localization.results import load_masks
from memtrain.models.encoding import encode_prompts
from memtrain.models.neuron_mask import NeuronMask

SITE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
PROMPTS = [
    PromptToScore("a b", True),
    PromptToScore("c d", None),
    *(PromptToScore(text, False) for text in ("e", "f g", "h i", "j", "k l", "m n o")),
]
IMAGES = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SAMPLING = Sampling(seeds=(0, 1), steps=2, guidance_scale=4.0, batch_size=8, progress=False)
EVERY = Search(threshold=-1.0)
"""With a threshold below every similarity, so that every prompt gets neurons."""


def given(
    pipeline: StableDiffusionPipeline,
    output: Path,
    prompts: list[PromptToScore] = PROMPTS,
    *,
    own_images: torch.Tensor | None = None,
) -> StageInput:
    return StageInput(
        pipeline=pipeline, prompts=prompts, output=output, own_images=own_images, sampling=SAMPLING, model="a model"
    )


@pytest.fixture(scope="module")
def evaluated(pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """With a threshold below every similarity, so that every prompt gets neurons, and a first prompt that is copied."""
    own = IMAGES.clone()
    own[0] = sample_embeddings(pipeline, encode_prompts(pipeline, ["a b"]), sampling=SAMPLING)[0, 0]
    folder = tmp_path_factory.mktemp("localization")
    before = copy.deepcopy(pipeline.unet.state_dict())
    case = given(pipeline, folder, own_images=own)
    results = localize(case, search=EVERY, probe_steps=3, bake=folder / "baked")
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())
    return folder, results


def test_every_condition_is_there_with_its_prompts(evaluated: tuple[Path, dict]) -> None:
    folder, results = evaluated
    assert json.loads((folder / "localization.json").read_text()) == results
    table = pq.read_table(folder / "localization.parquet").to_pylist()
    asked, tested, controls = ["a b", "c d"], ["f g", "j", "m n o"], ["e", "f g", "h i", "j", "k l", "m n o"]
    expected = {
        "unmasked": asked + controls,
        "masked": asked + tested,
        "all masks": asked + tested,
        "unmasked + re-trigger": asked + tested,
        "masked + re-trigger": asked,
        "all masks + re-trigger": asked,
    }
    for name, texts in expected.items():
        assert [row["prompt"] for row in table if row["condition"] == name] == texts, name
    assert {row["condition"] for row in table} == set(expected)
    assert results["prompts"] == {"asked": 2, "controls": 6, "controls_tested": 3, "lines": 8}
    assert results["located"]["asked"]["k"] + results["located"]["false_alarms"]["k"] == len(
        load_masks(folder / "masks.safetensors")
    )


def test_figures_are_those_of_the_rows(evaluated: tuple[Path, dict]) -> None:
    folder, results = evaluated
    table = pq.read_table(folder / "localization.parquet").to_pylist()
    threshold = results["replication"]["threshold"]
    controls = [row["best_ratio"] for row in table if row["condition"] == "unmasked" and row["memorized"] is False]
    assert threshold == pytest.approx(min(controls)), "the lowest that six controls can promise"
    copied = [row for row in table if row["condition"] == "unmasked" and row["best_ratio"] < 0.01]
    assert [(row["prompt"], row["reproduced"]) for row in copied] == [("a b", True)]
    for name, groups in results["conditions"].items():
        for group, figures in groups.items():
            rows = [
                row
                for row in table
                if row["condition"] == name and (row["memorized"] is False) == (group == "controls")
            ]
            assert figures["n"] == len(rows)
            assert figures["reproduced"]["k"] == sum(row["best_ratio"] < threshold for row in rows)
            assert figures["reproduced"]["k"] / (2 * len(rows)) <= figures["share_of_images"]
            assert figures["share_of_images"] <= figures["reproduced"]["share"]
            assert figures["diversity"]["mean"] == pytest.approx(sum(row["diversity"] for row in rows) / len(rows))
    searched = [row for row in table if row["condition"] == "unmasked + re-trigger"]
    lowest = min(row["best_ratio"] for row in searched if row["memorized"] is False)
    below = sum(row["best_ratio"] < lowest for row in searched if row["memorized"] is not False)
    assert results["conditions"]["unmasked + re-trigger"]["asked"]["below_every_control"]["k"] == below


def test_masks_change_images_and_the_loss(evaluated: tuple[Path, dict]) -> None:
    _, results = evaluated
    conditions = results["conditions"]
    assert conditions["all masks"]["asked"]["best_ratio"] != conditions["unmasked"]["asked"]["best_ratio"]
    loss = results["heldout_loss"]
    assert loss["n"] == 6
    assert loss["all masks"] != loss["unmasked"]
    assert loss["change"] == pytest.approx(loss["all masks"] / loss["unmasked"] - 1, rel=1e-4)


def test_the_baked_pipeline_has_all_masks(evaluated: tuple[Path, dict]) -> None:
    folder, results = evaluated
    whole = NeuronMask.load(folder / "baked" / "neuron_mask.safetensors")
    assert len(whole) == results["neurons"]["all_masks"]
    baked = StableDiffusionPipeline.from_pretrained(folder / "baked", safety_checker=None)
    for site, channels in whole.channels.items():
        assert not baked.unet.get_submodule(site).to_v.weight[channels].any()


def test_the_sheet_and_the_screen_show_every_condition(evaluated: tuple[Path, dict]) -> None:
    folder, results = evaluated
    with Image.open(folder / "localization.png") as picture:
        assert picture.width > 900
    console = Console(record=True, width=80)
    print_localization(results, folder, console=console)
    text = console.export_text()
    words = " ".join(text.split())
    for part in ("trigger suppression", "│ all masks + │", "false alarms", results["verdict"]["text"]):
        assert part in words
    assert "…" not in text, "nothing is cut in a terminal of 80 columns"


def test_without_own_images_nothing_is_said_about_replication(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    results = localize(given(pipeline, tmp_path), search=EVERY)
    assert results["replication"]["threshold"] is None
    assert results["probe"] is None
    assert results["heldout_loss"] is None
    assert set(results["conditions"]) == {"unmasked", "masked", "all masks"}
    assert "reproduced" not in results["conditions"]["masked"]["asked"]
    assert results["verdict"]["level"] == "not_measured"
    print_localization(results, tmp_path, console=Console(record=True))


def test_where_nothing_is_found_nothing_is_masked(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    results = localize(given(pipeline, tmp_path, own_images=IMAGES), search=Search(threshold=2.0), probe_steps=1)
    assert set(results["conditions"]) == {"unmasked", "unmasked + re-trigger"}
    assert results["located"]["asked"]["k"] == results["located"]["false_alarms"]["k"] == 0
    assert (results["verdict"]["level"], results["neurons"]["all_masks"]) == ("nothing_located", 0)
    print_localization(results, tmp_path, console=Console(record=True))


def test_neurons_by_contribution_instead_of_nemos(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    results = localize(given(pipeline, tmp_path), search=Search(threshold=-1.0, contribution=0.5))
    assert results["search"]["selection"] == "contribution"
    assert results["neurons"]["per_prompt"] == {"min": 32.0, "median": 32.0, "max": 32.0}
    assert len(load_masks(tmp_path / "masks.safetensors")) == 5


def test_networks_measure_what_the_masks_change(
    pipeline: StableDiffusionPipeline, tmp_path: Path, clip_folder: Path
) -> None:
    """A_CLIP of both groups, and CLIP-FID of the tested controls without and with all masks; the report shows them."""
    case = given(pipeline, tmp_path, own_images=IMAGES)
    results = localize(case, search=EVERY, probe_steps=0, weights=Weights(clip=str(clip_folder)))
    networks = results["networks"]
    assert results["probe"] is None
    assert {name: found["A_CLIP"]["all"]["n"] for name, found in networks["groups"].items()} == {
        "asked": 2,
        "controls": 3,
    }
    assert networks["groups"]["asked"]["A_CLIP"] != networks["groups"]["asked"]["without_mask"]["A_CLIP"]
    assert networks["distribution_without"]["CLIP_FID"] != networks["distribution_with"]["CLIP_FID"]
    report = write_report(tmp_path).read_text(encoding="utf-8")
    assert "A_CLIP" in report and f"{networks['distribution_with']['CLIP_FID']['value']:.3f}" in report


def test_what_cannot_be_evaluated_is_refused_before_anything_runs(
    pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localization, "find_neurons", None)
    with pytest.raises(ConfigurationError, match="0 to search"):
        localize(given(pipeline, tmp_path, PROMPTS[2:]))
    other = PromptToScore(PROMPTS[0].text, not PROMPTS[0].memorized)
    with pytest.raises(ConfigurationError, match="in line 9"):
        localize(given(pipeline, tmp_path, [*PROMPTS, other]))
    with pytest.raises(DataError, match="8 prompts and own images"):
        localize(given(pipeline, tmp_path, own_images=IMAGES[:3]))


def test_the_change_of_loss_is_that_of_the_means() -> None:
    found = change_of_loss(torch.tensor([1.0, 3.0]), torch.tensor([1.1, 3.3]))
    assert found["change"] == pytest.approx(0.1)
    assert found["interval"] == pytest.approx([0.1, 0.1], abs=1e-6), "the same for every image"


def results_with(masked: int, searched: int | None, control: int) -> dict[str, Any]:
    def of(k: int) -> dict[str, Any]:
        return {"reproduced": share([True] * k + [False] * (10 - k))}

    conditions = {"unmasked": {"asked": of(10)}, "masked": {"asked": of(masked)}}
    if searched is not None:
        conditions["masked + re-trigger"] = {"asked": of(searched)}
        conditions["unmasked + re-trigger"] = {"asked": of(10), "controls": of(control)}
    return {"located": {"asked": share([True])}, "conditions": conditions}


@pytest.mark.parametrize(
    ("searched", "control", "level", "words"),
    [
        (8, 1, "trigger_suppression", "10 of 10 without masks. It also brings back 1 of 10 images"),
        (2, 2, "not_brought_back", "no larger share than of those"),
        (2, 10, "trigger_suppression", "cannot tell"),
        (None, 0, "trigger_suppression", "was not tested"),
    ],
)
def test_it_is_trigger_suppression_unless_the_search_fails_too(
    searched: int | None, control: int, level: str, words: str
) -> None:
    found = verdict(results_with(1, searched, control))
    assert found["level"] == level
    assert words in found["text"]
    assert "1 of 10 prompts reproduce" in found["text"]


def test_masks_that_change_nothing_are_no_suppression() -> None:
    found = verdict(results_with(10, 10, 0))
    assert found["level"] == "nothing_suppressed"
    assert "suppress nothing" in found["text"]


def test_the_change_of_no_loss_is_refused_and_that_of_one_has_no_interval() -> None:
    with pytest.raises(DataError, match="no losses to compare"):
        change_of_loss(torch.zeros(0), torch.zeros(0))
    one = change_of_loss(torch.tensor([2.0]), torch.tensor([3.0]))
    assert (one["n"], one["change"], one["interval"]) == (1, 0.5, None)
    assert change_of_loss(torch.tensor([2.0, 1.0]), torch.tensor([3.0, 1.0]))["interval"] is not None


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_prompt_one_and_two_with_neurons(count: int) -> None:
    one = Found(prompt="p", similarity=0.9, kept_seeds=1, calls=1, images=1, seconds=0.0, refined=((0, 1), ()))
    found = neuron_figures([one] * count, ["down", "mid"], None)
    assert found["per_layer"] == {"down": 2.0 if count else 0.0, "mid": 0.0}
    assert found["per_prompt"] == ({"min": 2.0, "median": 2.0, "max": 2.0} if count else None)
    assert share([True] * count)["share"] == (1.0 if count else None)
