"""Variations of captions are distinct texts, those of images distinct pictures, and number 0 is the original."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageOps

from memtrain.data.selection import MOST_VARIANTS
from memtrain.data.variations import BEFORE, BEHIND, vary_caption, vary_image

CAPTION = "clip art of a plush tux, in yellow and black, penguin, linux"


@pytest.mark.parametrize("caption", [CAPTION, "word", " two  words "])
def test_captions_are_all_different_and_the_first_is_the_original(caption):
    captions = [vary_caption(caption, number, name="0 a") for number in range(MOST_VARIANTS)]
    assert captions[0] == caption
    assert len(set(captions)) == MOST_VARIANTS <= len(BEFORE) * len(BEHIND)
    assert not [(a, b) for a in BEFORE for b in BEFORE if a != b and f"{b} ".startswith(f"{a} ")]


def test_most_of_a_caption_stays_in_order():
    kept = 0
    for number in range(1, 60):
        words = iter(vary_caption(CAPTION, number, name="0 a").split())
        kept += sum(any(word == other for other in words) for word in CAPTION.split()[-4:])
    assert 0.4 < kept / (59 * 4) <= 0.95
    assert all(vary_caption("word", number, name="x").split().count("word") == 1 for number in range(30))


def test_captions_depend_on_name_and_number_alone():
    assert vary_caption(CAPTION, 3, name="0 a") == vary_caption(CAPTION, 3, name="0 a")
    differing = sum(vary_caption(CAPTION, n, name="0 a") != vary_caption(CAPTION, n, name="1 a") for n in range(1, 20))
    assert differing > 10


@pytest.fixture
def picture():
    """A red disc on a blue left and green right half, large enough to be shifted."""
    image = Image.new("RGB", (64, 48), (0, 0, 255))
    image.paste((0, 255, 0), (32, 0, 64, 48))
    image.paste((255, 0, 0), (8, 12, 20, 24))
    return image


def test_images_are_all_different_and_the_first_is_the_original(picture):
    images = [vary_image(picture, number, of=10, name="0 a") for number in range(10)]
    assert images[0] is picture
    assert {(image.size, image.mode) for image in images} == {((64, 48), "RGB")}
    pixels = [np.asarray(image, dtype=float) for image in images]
    assert min(np.abs(a - b).mean() for i, a in enumerate(pixels) for b in pixels[:i]) > 10
    again = vary_image(picture, 4, of=10, name="0 a")
    assert again.tobytes() == images[4].tobytes()
    assert vary_image(picture, 4, of=10, name="1 a").tobytes() != images[4].tobytes()


def test_hues_are_turned_as_colorsys_turns_them():
    flat = Image.new("RGB", (8, 8), (200, 60, 30))
    for number in range(1, 5):
        hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in (200, 60, 30)))
        expected = 255 * np.array(colorsys.hsv_to_rgb((hue + number / 5) % 1, saturation, value))
        found = np.asarray(vary_image(flat, number, of=5, name="x"), dtype=float)
        assert np.abs(found - expected).max() < 8  # Pillow keeps hues in 256 steps


def test_grey_images_are_mirrored_and_shifted_only():
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).convert("RGB")
    for number in (1, 2):
        found = np.asarray(vary_image(grey, number, of=4, name="x"))
        source = np.asarray(ImageOps.mirror(grey) if number % 2 else grey)
        padded = np.pad(source, ((4, 4), (4, 4), (0, 0)), mode="edge")
        places = [(x, y) for x in range(9) for y in range(9) if (padded[y : y + 64, x : x + 64] == found).all()]
        assert len(places) == 1, "found at one place, at most a sixteenth away"


def test_images_too_small_to_shift():
    assert vary_image(Image.new("RGB", (4, 4), "red"), 2, of=4, name="x").size == (4, 4)
