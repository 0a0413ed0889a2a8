"""Decoding of one image of a source, with new tries after passing errors of a network file system.

A training of days meets such errors (EIO, ESTALE and similar ones), which are over a second later. A damaged or missing
file is another kind of error and is refused at once. Cost: :data:`WAIT` seconds before the second try, and twice as
long before each further one; nothing without errors.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable

from PIL import Image

from memtrain.files.pictures import PictureError, read_image

log = logging.getLogger(__name__)
PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOTCONN, errno.EREMOTEIO})
"""Errors of file systems that may be over when a file is read again."""
TRIES = 4
"""The number of times that a file is read at most."""
WAIT = 0.5
"""The seconds before a file is read again; twice as many after each time."""


def decoded(opening: Callable[[], Image.Image], *, name: str) -> Image.Image:
    """Decode an image to RGB, upright and on white.

    Args:
        opening: the function that opens the image, called again for each try.
        name: the name of the image for the log.

    Raises:
        PictureError: if it is not an image of a decoded kind, or is damaged.
        OSError: if it cannot be read.
        Image.DecompressionBombError: if it has too many pixels.
    """
    for turn in range(TRIES - 1):
        try:
            return read_image(opening())
        except (OSError, PictureError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in PASSING:
                raise
            log.warning("The image of sample %r is read again: %s", name, cause.strerror)
            time.sleep(WAIT * 2**turn)
    return read_image(opening())
