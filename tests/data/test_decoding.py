"""What a file system fails to read once is read again; a damaged image is not."""

import errno
import io

import pytest
from PIL import Image

from memtrain.data import decoding
from memtrain.files.pictures import PictureError, opened_image

from ..conftest import encoded_image


class Failing(io.BytesIO):
    """A file whose contents cannot be read."""

    def read(self, *args):
        raise OSError(errno.ESTALE, "Stale file handle")


@pytest.fixture
def waited(monkeypatch):
    found = []
    monkeypatch.setattr(decoding.time, "sleep", found.append)
    return found


def opening(*outcomes):
    left = list(outcomes)

    def once() -> Image.Image:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return opened_image(outcome)

    return once


def test_a_passing_error_is_waited_for(waited, caplog):
    good = io.BytesIO(encoded_image(4))
    image = decoding.decoded(opening(OSError(errno.EIO, "I/O error"), Failing(), good), name="a")
    assert image.getpixel((0, 0))[0] == 40
    assert waited == [0.5, 1.0]
    assert "'a' is read again: I/O error" in caplog.text


def test_an_error_that_stays_is_told(waited):
    with pytest.raises(OSError, match="I/O error"):
        decoding.decoded(opening(*[OSError(errno.EIO, "I/O error")] * 4), name="a")
    assert len(waited) == 3


@pytest.mark.parametrize("outcome", [FileNotFoundError(errno.ENOENT, "gone"), io.BytesIO(b"no image")])
def test_what_is_gone_or_damaged_is_not_tried_again(waited, outcome):
    with pytest.raises((OSError, PictureError)):
        decoding.decoded(opening(outcome), name="a")
    assert not waited
