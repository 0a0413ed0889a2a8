"""Opening a source by path, decoding images, and what every source refuses."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from memtrain.data.image_folder import ImageFolderSource
from memtrain.data.source import Sample, SampleSource, open_source
from memtrain.data.webdataset import WebDatasetSource
from memtrain.errors import DataError

from ..conftest import encoded_image


class BytesSource(SampleSource):
    """One sample with the given file."""

    def __init__(self, content: bytes) -> None:
        super().__init__("memory")
        self.samples = [Sample("only", "a caption")]
        self.content = content

    @staticmethod
    def accepts(path: str) -> bool:
        return False

    def open_image(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(self.content))


def first_pixel(image: Image.Image, **options) -> tuple[int, ...]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    loaded = BytesSource(buffer.getvalue()).load_image(0)
    assert loaded.mode == "RGB"
    return loaded.getpixel((0, 0))


def test_a_folder_and_a_shard_are_told_apart(write_folder, write_shard):
    assert isinstance(open_source(str(write_folder(2))), ImageFolderSource)
    shard = write_shard({"a.png": encoded_image(), "a.txt": b"a cat"})
    assert isinstance(open_source(str(shard)), WebDatasetSource)


def test_missing_path():
    with pytest.raises(DataError, match=r"'no/such/folder' does not exist[\s\S]*Expected: a folder[\s\S]*Remedy: "):
        open_source("no/such/folder")


def test_folder_without_metadata(tmp_path):
    with pytest.raises(DataError, match=r"exists but is not a data source[\s\S]*write a metadata\.jsonl"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (9, 9, 9, 0)), ("LA", (9, 0))])
def test_transparent_becomes_white(mode, colour):
    assert first_pixel(Image.new(mode, (2, 2), colour)) == (255, 255, 255)


def test_half_transparent_is_blended_with_white():
    assert first_pixel(Image.new("RGBA", (2, 2), (0, 0, 0, 51))) == (204, 204, 204)


def test_transparent_palette_entry_becomes_white():
    image = Image.new("P", (2, 2), 0)
    image.putpalette([200, 10, 10, 0, 0, 0])
    assert first_pixel(image) == (200, 10, 10)
    assert first_pixel(image, transparency=0) == (255, 255, 255)


def test_transparent_colour_of_rgb_becomes_white():
    assert first_pixel(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3)) == (255, 255, 255)


def test_grey_becomes_rgb():
    assert first_pixel(Image.new("L", (2, 2), 77)) == (77, 77, 77)


def test_16_bit_grey_keeps_its_brightness():
    assert first_pixel(Image.fromarray(np.full((2, 2), 128 * 256, dtype=np.uint16))) == (128, 128, 128)


def test_32_bit_image_is_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)).save(buffer, "TIFF")
    with pytest.raises(DataError, match=r"'only'[\s\S]*32-bit[\s\S]*convert it to 8 or 16 bits"):
        BytesSource(buffer.getvalue()).load_image(0)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # stored lying on its side
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert BytesSource(buffer.getvalue()).load_image(0).size == (4, 6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_every_damage_is_a_data_error(kind):
    content = bytes(encoded_image(size=(24, 24), kind=kind))
    refused = 0
    randomness = np.random.default_rng(0)
    for length in [0, 1, *range(10, len(content), max(1, len(content) // 20))]:
        damaged = bytearray(content[:length])
        if damaged:
            damaged[randomness.integers(len(damaged))] ^= 0xFF
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own remarks on broken files
                BytesSource(bytes(damaged)).load_image(0)
        except DataError as error:
            refused += 1
            assert "'only'" in str(error)  # noqa: PT017
            assert "Remedy: repair or remove this sample" in str(error)  # noqa: PT017
    assert refused > 10


def png(*chunks: tuple[bytes, bytes], size: int = 2) -> bytes:
    """A PNG with these chunks after the header."""
    header = (b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in (header, *chunks):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


PIXELS = (b"IDAT", zlib.compress(bytes(14)))


def test_png_made_by_hand_is_good():
    assert BytesSource(png(PIXELS)).load_image(0).size == (2, 2)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (png(PIXELS, size=60000), Image.DecompressionBombError),
        (png(PIXELS, (b"pHYs", b"x")), ValueError),
        (png((b"IDAT", PIXELS[1][:4]), (b"\xff\xff\xff\xff", b"")), SyntaxError),
        (png((b"IDAT", bytes(20))), OSError),
        (b"GIF", UnidentifiedImageError),
    ],
    ids=["bomb", "chunk too short", "no chunk", "no pixels", "no image"],
)
def test_every_kind_of_decoding_error_is_a_data_error(content, cause):
    with pytest.raises(DataError, match=r"'only'[\s\S]*cannot be read") as caught:
        BytesSource(content).load_image(0)
    assert isinstance(caught.value.__cause__, cause)


def check(*samples: Sample) -> None:
    source = BytesSource(b"")
    source.samples = list(samples)
    source.check_samples()


def test_good_samples_pass():
    check(Sample("a", "x"), Sample("b", "x"))


def test_no_samples():
    with pytest.raises(DataError, match="No captioned image was found in memory"):
        check()


def test_repeated_key():
    with pytest.raises(DataError, match=r"1 key\(s\) name more than one sample in memory, first \['a'\]"):
        check(Sample("a", "x"), Sample("b", "x"), Sample("a", "y"))


@pytest.mark.parametrize("caption", ["", " \n"])
def test_empty_caption(caption):
    with pytest.raises(DataError, match=r"1 sample\(s\) in memory have an empty caption, first \['b'\]"):
        check(Sample("a", "x"), Sample("b", caption))
