"""How images are cut: sizes of buckets, crops, flips, and the variants of a cache."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from memtrain.data.framing import Augment, Buckets, Frame, Framing, without_small
from memtrain.data.images import framed, to_pixel_values
from memtrain.errors import ConfigurationError


def pattern(width, height):
    """Each pixel says where it is."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, rows * 0 + 7], axis=-1).astype(np.uint8))


def test_buckets_have_about_the_area_and_sides_of_multiples():
    shapes = Buckets(step=64).shapes(512)
    assert (512, 512) in shapes
    assert {(320, 768), (768, 320), (256, 1024), (1024, 256)} <= set(shapes)
    for rows, columns in shapes:
        assert rows % 64 == columns % 64 == 0
        assert min(rows, columns) >= 256
        assert max(rows, columns) <= 1024
        assert rows * columns <= 512**2 < (min(rows, columns) + 64) * max(rows, columns)
    assert shapes == sorted(shapes, key=lambda shape: shape[1] / shape[0])
    assert Buckets(step=64, min_side=448, max_side=576).shapes(512) == [(576, 448), (512, 512), (448, 576)]


@pytest.mark.parametrize("settings", [{"step": 0}, {"step": 128}, {"min_side": 80}, {"max_side": 32}])
def test_buckets_that_hold_no_square_are_refused(settings):
    with pytest.raises(ConfigurationError, match="Remedy"):
        Buckets(**settings).shapes(64)


def test_an_image_gets_the_nearest_aspect_ratio():
    framing = Framing(((32, 64), (48, 48), (64, 32)))
    sizes = [(400, 200), (200, 400), (100, 101), (100, 130), (130, 190)]
    assert [framing.shape_of(size) for size in sizes] == [(32, 64), (64, 32), (48, 48), (48, 48), (64, 32)]


def test_without_buckets_and_augmentation_an_image_is_its_centre_square():
    image = pattern(50, 31)
    expected = np.array(ImageOps.fit(image, (16, 16), method=Image.Resampling.LANCZOS))
    framing = Framing.of(16, buckets=None, augment=None, seed=3)
    frame = framing.frame(framing.shape_of(image.size), "key", (4, 0))
    assert frame == Frame((16, 16))
    pixels = to_pixel_values(image, frame)
    assert torch.equal(pixels, to_pixel_values(image, 16))
    assert torch.equal(((pixels + 1) * 127.5).round().to(torch.uint8), torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize("flipped", [False, True])
def test_a_crop_begins_where_it_says(flipped):
    image = pattern(64, 32)  # as high as the target: nothing is resized
    frame = Frame((32, 32), across=0.75, along=0.1, flipped=flipped)
    top, left = frame.top_left(image.size)
    assert (top, left) == (0, 24)
    whole = ImageOps.mirror(image) if flipped else image
    expected = np.array(whole)[:, 24:56]
    assert np.array_equal(np.array(framed(image, frame)), expected)


def test_crop_coordinates_are_those_of_the_resized_image():
    assert Frame((32, 32)).top_left((128, 64)) == (0, 16)
    assert Frame((32, 64), along=1.0).top_left((128, 128)) == (32, 0)


def test_draws_depend_on_seed_epoch_visit_and_key_alone():
    augment = Augment(random_crop=True, random_flip=True)
    framing = Framing(((8, 8),), augment, seed=1)
    frame = framing.frame((8, 8), "a", (2, 0))
    assert frame == framing.frame((8, 8), "a", (2, 0))
    others = [
        framing.frame((8, 8), "a", (3, 0)),
        framing.frame((8, 8), "a", (2, 1)),
        framing.frame((8, 8), "b", (2, 0)),
        Framing(((8, 8),), augment, seed=2).frame((8, 8), "a", (2, 0)),
    ]
    assert frame not in others
    assert framing.frame((8, 8), "a", None) == Frame((8, 8))
    flips = sum(framing.frame((8, 8), "a", (epoch, 0)).flipped for epoch in range(400))
    # Four standard deviations of a binomial distribution.
    assert abs(flips - 200) < 40
    places = [framing.frame((8, 8), "a", (epoch, 0)).across for epoch in range(400)]
    assert abs(sum(places) / 400 - 0.5) < 4 * math.sqrt(1 / 12 / 400)


def test_variants_begin_with_the_fixed_view_and_are_visited_alike():
    framing = Framing(((8, 8),), Augment(random_flip=True, variants=2))
    assert framing.variant((8, 8), "a", 0) == Frame((8, 8))
    assert framing.variant((8, 8), "a", 1) == Frame((8, 8), flipped=True)
    seen = Counter(framing.variant_of("a", (epoch, 0)) for epoch in range(400))
    assert abs(seen[0] - 200) < 40
    assert seen.total() == seen[0] + seen[1]
    assert framing.variant_of("a", None) == 0
    assert Framing(((8, 8),), Augment(variants=3)).variants == 1, "without anything random there is one view"


def test_small_buckets_give_their_images_to_the_nearest_one():
    shapes = [(32, 64)] * 2 + [(40, 48)] * 5 + [(48, 48)] * 9 + [(64, 32)] * 1
    assert without_small(shapes, 1) == ((64, 32), (48, 48), (40, 48), (32, 64))
    assert without_small(shapes, 6) == ((48, 48), (40, 48)), "the two of 32 x 64 made the one of 40 x 48 large enough"
    assert len(without_small(shapes, 100)) == 1
