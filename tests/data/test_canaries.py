"""Synthetic images and captions: the same for the same seed, and far from each other."""

import pytest
import torch

from memtrain.data.canaries import PLACES, THINGS, Canaries, canary_caption, draw_canary
from memtrain.data.images import to_pixel_values
from memtrain.errors import ConfigurationError


def test_images_are_clearly_different_from_each_other_and_from_other_seeds():
    pixels = torch.stack([to_pixel_values(draw_canary(seed, n), 32) for seed in (0, 1) for n in range(40)]) / 2
    distances = torch.cdist(pixels.flatten(1), pixels.flatten(1)) / (3 * 32 * 32) ** 0.5
    assert distances[~torch.eye(80, dtype=torch.bool)].min() > 0.26  # root mean square, of values from 0 to 1
    assert pixels.flatten(2).std(dim=2).amin() > 0.02, "none is flat"


def test_image_and_caption_are_functions_of_seed_and_number():
    assert draw_canary(3, 5).tobytes() == draw_canary(3, 5).tobytes()
    assert (draw_canary(3, 5).mode, draw_canary(3, 5).size) == ("RGB", (256, 256))
    assert canary_caption(3, 5) == canary_caption(3, 5)
    assert canary_caption(3, 5) != canary_caption(4, 5)


def test_no_two_captions_share_their_nouns():
    captions = [canary_caption(0, number) for number in range(len(THINGS) * len(PLACES))]
    assert len({(caption.split()[2], caption.split()[-1]) for caption in captions}) == 400
    assert all(len(caption.split()) == 8 for caption in captions)


def test_several_repeats_make_a_curve():
    canaries = Canaries(count=2, repeats=(3, 10, 30))
    assert canaries.total == 6
    assert [canaries.visits(number) for number in range(6)] == [3, 3, 10, 10, 30, 30]
    assert (Canaries(count=5).total, Canaries(count=5, repeats=7).visits(4)) == (5, 7)


@pytest.mark.parametrize(
    "settings",
    [
        {"count": 0},
        {"count": 401},
        {"repeats": 0},
        {"repeats": ()},
        {"repeats": (2, 2)},
        {"count": 201, "repeats": (1, 2)},
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigurationError, match=r"canaries: count=.*[\s\S]*1 to 400 images"):
        Canaries(**settings)
