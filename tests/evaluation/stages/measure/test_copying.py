"""Measures of copying on generations of which some are copies: thresholds, groups, controls, counts and the verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.evaluation.measures.copying.base import Compared, CopyMeasure
from memtrain.evaluation.measures.copying.calibration import CopyCalibration
from memtrain.evaluation.measures.copying.find import copy_measures
from memtrain.evaluation.sampling.generate import Trace
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.measure import evaluate_run as module
from memtrain.evaluation.stages.measure.copied import (
    Copied,
    counted_groups,
    null_values,
    own_pictures,
    thresholds_of_prompts,
)
from memtrain.evaluation.stages.measure.copying import Chosen
from memtrain.evaluation.stages.measure.evaluate_run import evaluate_run
from memtrain.evaluation.stages.measure.results import Statistics
from memtrain.evaluation.stages.prompts import Prompt
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.families.table import Families

UNIQUE, REPEATED, HELD, SEEDS = 20, 4, 24, 3


class Brightness(CopyMeasure):
    """A measure whose numbers can be worked out by hand: the negative difference of two means."""

    name = "brightness"

    def describe(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(1, 2, 3))[:, None]

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        return -(first - second.T).abs()


def grey(*levels: int) -> Tensor:
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def test_a_picture_of_several_files_has_a_threshold_of_its_own() -> None:
    """The gain of its files over the first, by generations that cannot be copies: 20, 10 and 0 of three prompts."""
    measure = Brightness()
    features = measure.describe(grey(100, 120, 200))
    generated = torch.stack([grey(120, 100), grey(110, 130)[:, :3], grey(90, 80)])
    thresholds, factors = thresholds_of_prompts(
        measure, generated, features, mine=[[0], [0, 1], []], threshold=-5.0, rate=0.25
    )
    # Of the second prompt's pictures, 100 and 120: gains are 20, 20 (130: 30 against 10) and 0; at 1 of 4 the highest.
    assert thresholds[1:].tolist() == [15.0, -5.0]
    # The first prompt's picture is met exactly by a generation that cannot be a copy.
    assert 0 < thresholds[0] < 1e-300
    assert factors.tolist() == [1, 2, 1]
    nothing, ones = thresholds_of_prompts(measure, generated, features, mine=[[0, 1]], threshold=-5.0, rate=None)
    assert (nothing.tolist(), ones.tolist()) == ([-5.0], [1])


def test_all_files_and_all_pictures_under_a_caption_are_own() -> None:
    family = torch.tensor([0, 0, 1, 2, 1])
    assert own_pictures(torch.tensor([1, 2, -1]), family, [[], [2, 3], []]) == [[1, 0], [2, 4, 3], []]


def test_made_captions_are_held_to_the_nearest_picture() -> None:
    compared = Compared(
        torch.tensor([[1.0, 2.0], [5.0, 3.0]]),
        torch.tensor([[7.0, 2.0], [5.0, 9.0]]),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.zeros(2, 2),
        torch.zeros(2),
    )
    everything = torch.tensor([True, True])
    assert null_values(compared, everything, made=False).tolist() == [2, 5]
    assert null_values(compared, everything, made=True).tolist() == [7, 9]
    assert null_values(compared, torch.tensor([False, True]), made=True).tolist() == [9]


def test_pictures_are_counted_with_what_chance_brings() -> None:
    best = torch.tensor([0.9, 0.1, 0.9, 0.8, 0.0])
    compared = Compared(best[:, None], best[:, None], torch.zeros(5, 1), best[:, None], best)
    calibration = CopyCalibration(0.5, 0.1, 0.2, 9, {}, {})
    copied = Copied("m", compared, calibration, torch.tensor([0.5, 0.5, 0.5, 0.85, 0.5]), torch.tensor([1, 1, 1, 2, 1]))
    groups = ["repeated", "repeated", "repeated", "repeated", "unique"]
    found = counted_groups(copied, groups, ["a", "a", "b", "c", "d"])
    assert (found["repeated"]["n"], found["repeated"]["reproduced"]) == (3, 2), "c is below its own threshold"
    # Five chances of three pictures: two prompts of a, and c with twice the rate.
    assert found["repeated"]["expected"] == pytest.approx(0.1 * 5)
    assert found["repeated"]["highest"] == pytest.approx(0.4)
    assert (found["unique"]["reproduced"], found["unique"]["probability"]) == (0, 1.0)


@pytest.fixture(scope="module")
def samples() -> RunSamples:
    random = torch.Generator().manual_seed(0)

    def noise(count: int) -> Tensor:
        coarse = torch.rand(count, 3, 4, 4, generator=random)
        return (torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear") * 255).to(torch.uint8)

    training, held = noise(UNIQUE + 2 * REPEATED), noise(HELD)
    training[UNIQUE + REPEATED :] = training[UNIQUE : UNIQUE + REPEATED].flip(3)
    keys = [f"k{number}" for number in range(len(training))]
    again = {keys[UNIQUE + REPEATED + number]: keys[UNIQUE + number] for number in range(REPEATED)}
    prompts = [Prompt(key, f"caption {key}", "unique") for key in keys[:UNIQUE]]
    prompts += [Prompt(key, f"caption {key}", "repeated") for key in keys[UNIQUE : UNIQUE + REPEATED]]
    prompts += [Prompt(f"h{number}", f"caption h{number}", "heldout") for number in range(HELD)]
    return RunSamples(
        prompts=prompts,
        own_images=torch.cat([training[: UNIQUE + REPEATED], held]),
        training_images=training,
        training_keys=keys,
        families=Families({**again, **{first: first for first in again.values()}}),
        population={"unique": UNIQUE, "repeated": REPEATED},
        grouped_by={key: "ann" if number < UNIQUE else "bob" for number, key in enumerate(keys)},
    )


def evaluated(
    samples: RunSamples, copied: int, pipeline: StableDiffusionPipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """An evaluation whose model gives back the first `copied` repeated pictures, mirrored, and else new pictures."""
    random = torch.Generator().manual_seed(1)
    coarse = torch.rand(len(samples.prompts) * SEEDS, 3, 4, 4, generator=random)
    images = (torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear") * 255).to(torch.uint8)
    images = images.view(len(samples.prompts), SEEDS, 3, 16, 16)
    images[UNIQUE : UNIQUE + copied, 1] = samples.own_images[UNIQUE : UNIQUE + copied].flip(3)
    captions = tuple(prompt.caption for prompt in samples.prompts)
    trace = Trace(captions, tuple(range(SEEDS)), images, {})
    # A random autoencoder gives nothing back; one that is trained gives the picture.
    monkeypatch.setattr(module, "sampled", lambda *_, **__: (trace, None, samples.own_images))
    given = StageInput(pipeline=pipeline, output=folder, sampling=Sampling(seeds=range(SEEDS), steps=5, progress=False))
    chosen = Chosen(copy_measures(["builtin", "tiles"])[0], {"sscd": "no weights"})
    return evaluate_run(given, samples, statistics=Statistics(resamples=5), kid=False, copying=chosen)


def test_copies_are_found_by_every_measure_that_sees_them(
    samples: RunSamples, pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = evaluated(samples, REPEATED, pipeline, tmp_path, monkeypatch)
    copying = results["copying"]
    assert set(copying["measures"]) == {"ratio", "builtin", "tiles"} and copying["left_out"] == {"sscd": "no weights"}
    assert copying["recommended"] in copying["measures"]
    for name in ("ratio", "tiles"):
        measure = copying["measures"][name]
        assert measure["sees"], name
        group = measure["groups"]["repeated"]
        assert (group["n"], group["reproduced"]) == (REPEATED, REPEATED), name
        assert group["probability"] < 0.01
        control = results["controls"][name]
        assert control["hold"] and control["planted"]["share"] == 1 and control["unplanted"]["share"] == 0
    verdict = results["verdict"]
    assert verdict["cleared"] is False and "4 of 4 repeated pictures" in verdict["text"]
    assert verdict["rests_on"] and verdict["cannot_say"]
    counts = results["counts"]
    assert counts["by_group"]["bob"]["reproduced"] == REPEATED
    assert (counts["groups"]["n"], counts["groups"]["reproduced"] >= 1) == (2, True)
    assert counts["measure"] == verdict["counted_by"]
    assert counts["pictures"]["reproduced"] == verdict["reproduced"] and counts["pictures"]["n"] == verdict["asked"]
    assert counts["generations"]["n"] == (UNIQUE + REPEATED) * SEEDS and counts["generations"]["copies"] >= REPEATED
    assert counts["extraction"]["by_prompt"]["n"] == UNIQUE + REPEATED
    assert counts["extraction"]["without_asking"]["copies"] <= 3
    # The copies are mirrored, as the second files of their pictures are: not verbatim the first.
    assert counts["verbatim_template"]["verbatim"]["prompts"] == 0
    rows = pq.read_table(tmp_path / "samples.parquet").to_pylist()
    row = next(row for row in rows if row["key"] == f"k{UNIQUE}" and row["seed"] == 1)
    assert row["copy.tiles.nearest_key"] in (f"k{UNIQUE}", f"k{UNIQUE + REPEATED}")
    assert row["copy.tiles.own"] == row["copy.tiles.nearest"] == pytest.approx(0, abs=1e-3)
    several = [row for row in rows if row["group"] == "repeated"]
    single = [row for row in rows if row["group"] == "unique"]
    assert max(row["ratio_threshold"] for row in several) <= min(row["ratio_threshold"] for row in single)


def test_a_model_that_makes_new_pictures_is_not_accused(
    samples: RunSamples, pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = evaluated(samples, 0, pipeline, tmp_path, monkeypatch)
    assert results["verdict"]["cleared"] is not False
    none = replace(
        samples, prompts=samples.prompts[: UNIQUE + REPEATED], own_images=samples.own_images[: UNIQUE + REPEATED]
    )
    unknown = evaluated(none, 0, pipeline, tmp_path / "none", monkeypatch)
    assert unknown["verdict"]["cleared"] is None
    assert "no_threshold" in [one["reason"] for one in unknown["verdict"]["reasons"]]
    assert all(measure["false_positive_rate"] is None for measure in unknown["copying"]["measures"].values())
