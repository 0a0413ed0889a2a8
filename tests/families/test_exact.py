"""Equal pixels, whatever the file."""

from __future__ import annotations

import io

from PIL import Image

from memtrain.families.exact import first_equal, pixel_hash


def test_pixels_count_and_files_do_not() -> None:
    image = Image.new("RGB", (4, 2), (1, 2, 3))
    file = io.BytesIO()
    image.save(file, "BMP")
    assert pixel_hash(Image.open(file)) == pixel_hash(image)
    assert pixel_hash(image.convert("RGBA")) == pixel_hash(image)


def test_one_grey_level_or_another_shape_is_another_picture() -> None:
    image = Image.new("RGB", (4, 2), (1, 2, 3))
    other = image.copy()
    other.putpixel((3, 1), (1, 2, 4))
    assert pixel_hash(other) != pixel_hash(image)
    assert pixel_hash(Image.new("RGB", (2, 4), (1, 2, 3))) != pixel_hash(image)


def test_each_value_is_named_by_its_first() -> None:
    assert first_equal("abacb").tolist() == [0, 1, 0, 3, 1]
    assert first_equal([]).tolist() == []
