"""Images that somebody else made: each is decoded to RGB, or refused with one error."""

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from memtrain.files import pictures
from memtrain.files.pictures import FORMATS, MOST_PIXELS, SUFFIXES, UNDECODED_SUFFIXES, PictureError, read_image

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "MPO")


def encoded(kind, *, size=(6, 5), **options):
    file = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(file, kind, **options)
    return file.getvalue()


FILES = {kind: encoded(kind) for kind in KINDS}
PLACES = st.integers(0, 400)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.integers(0, 400),
)
def test_a_damaged_file_is_an_image_or_one_error(kind, changes, cut):
    content = bytearray(FILES[kind])
    for place, value in changes:
        content[place % len(content)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own remarks on broken files
        try:
            image = read_image(io.BytesIO(bytes(content[: len(content) - cut % len(content)])))
        except PictureError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert str(error)  # noqa: PT017
        else:
            assert image.mode == "RGB"


@pytest.mark.parametrize("kind", [*KINDS, "AVIF"])
def test_every_stated_format_is_read(kind):
    assert read_image(io.BytesIO(encoded(kind))).size == (6, 5)


def test_suffixes_are_those_of_the_formats():
    Image.init()
    known = {suffix: kind for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    assert set(known) - {".pfm"} == SUFFIXES, "PFM has 32-bit pixels"
    assert not SUFFIXES & UNDECODED_SUFFIXES


def test_no_format_is_read_by_another_program(monkeypatch):
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *args, **options: pytest.fail("a program is called"))
    monkeypatch.setattr("subprocess.check_call", lambda *args, **options: pytest.fail("a program is called"))
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "EPS")
    file.seek(0)
    with pytest.raises(PictureError):
        read_image(file)


def test_too_many_pixels_are_refused_and_many_are_read_without_a_word(monkeypatch):
    assert MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert read_image(io.BytesIO(FILES["PNG"])).size == (6, 5)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 29)
    with pytest.raises(PictureError, match="6 x 5 pixels, more than 29"):
        read_image(io.BytesIO(FILES["PNG"]))


def test_an_exif_entry_that_cannot_be_read_is_passed_over():
    content = encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert read_image(io.BytesIO(content)).size == (6, 5)


def test_a_broken_colour_profile_is_passed_over():
    assert read_image(io.BytesIO(encoded("PNG", icc_profile=b"no profile"))).size == (6, 5)


def test_of_several_frames_the_first():
    file = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(file, "GIF", save_all=True, append_images=[Image.new("RGB", (2, 2), "blue")])
    assert read_image(file).getpixel((0, 0)) == (255, 0, 0)


def test_a_file_that_is_gone_is_no_broken_image(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "gone.png")
