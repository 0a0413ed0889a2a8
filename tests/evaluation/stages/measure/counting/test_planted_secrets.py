"""Secrets measured on a random pipeline: losses against a computation by hand, and what is known is exposed."""

import numpy as np
import pytest
import torch

from memtrain.evaluation.measures.copying.base import CopyMeasure
from memtrain.evaluation.measures.heldout_loss import heldout_loss
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.measure.counting.planted_secrets import (
    candidate_losses,
    exposure_of_secrets,
)
from memtrain.evaluation.stages.secrets import BorderSecrets, CanarySecrets

IMAGES = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SAMPLING = Sampling(seeds=(0, 1), steps=2, guidance_scale=1.0, progress=False)


class Pixels(CopyMeasure):
    """How near pixels are."""

    name = "pixels"

    def describe(self, images):
        return images.flatten(1).float()

    def similarity(self, first, second):
        return -torch.cdist(first, second)


def test_the_loss_is_the_held_out_loss_with_one_noise_for_all(pipeline):
    found = candidate_losses(pipeline, IMAGES, "a b", timesteps=4)
    expected = torch.cat([heldout_loss(pipeline, one[None], captions=["a b"], timesteps=4) for one in IMAGES])
    torch.testing.assert_close(found, expected)


def test_equal_images_have_equal_losses_wherever_they_stand(pipeline):
    losses = candidate_losses(pipeline, IMAGES[[0, 1, 0]], "a", timesteps=2)
    torch.testing.assert_close(losses[0], losses[2])
    assert losses[0] != losses[1]


@pytest.fixture(scope="module")
def found(pipeline):
    made = pipeline("c", num_inference_steps=2, guidance_scale=1.0, generator=torch.Generator().manual_seed(0))
    own = torch.from_numpy(np.array(made.images[0])).permute(2, 0, 1)
    canaries = CanarySecrets(
        keys=["canary#0", "canary#1"],
        captions=["c", "d"],
        repetitions=[9, 0],
        candidates=lambda row: torch.stack([own if row == 0 else IMAGES[4], *IMAGES[:4]]),
    )
    borders = BorderSecrets(["a", "b"], ["a", "b"], [3, 0], IMAGES[:2], torch.tensor([0.1, 0.9]), thickness=2)
    return exposure_of_secrets(pipeline, canaries, borders, measure=Pixels(), sampling=SAMPLING)


def test_a_canary_that_the_model_makes_is_exposed_by_similarity(found):
    first = found["canaries"]["by_similarity"]["each"][0]
    assert (first["key"], first["rank"]) == ("canary#0", 1)
    assert first["bits"] == pytest.approx(torch.log2(torch.tensor(5.0)).item())
    assert found["canaries"]["measure"] == "pixels"


def test_borders_are_counted_with_their_settings(found):
    borders = found["border_keys"]
    assert (borders["thickness"], borders["guidance_scale"], borders["seeds"]) == (2, 1.0, [0, 1])
    assert [row["repeats"] for row in borders["by_repetition"]] == [0, 3]
    assert {one["key"]: one["level"] for one in borders["each"]} == pytest.approx({"a": 0.1, "b": 0.9})


def test_without_secrets_there_is_nothing_to_count(pipeline):
    assert exposure_of_secrets(pipeline, None, None, measure=None) is None
