"""Decoding one image of a source; what a network file system fails to read once is read again.

A training of days meets them: EIO, ESTALE and the like, which are over a second later. A file that is damaged or gone
is no such error, and is refused at once. Cost: :data:`WAIT` seconds for the first repetition, twice as many for each
further one; nothing where all is well.
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
"""How often a file is read."""
WAIT = 0.5
"""Seconds before it is read again; twice as many after each time."""


def decoded(opening: Callable[[], Image.Image], *, name: str) -> Image.Image:
    """The decoded RGB image that `opening` opens, upright and on white.

    Args:
        opening: called again for each try.
        name: of the image, for the log.

    Raises:
        PictureError: if it is no image that is decoded, or damaged.
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
