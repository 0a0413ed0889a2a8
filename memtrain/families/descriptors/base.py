"""What a descriptor is: a vector of unit length for each image, alike for copies and unlike for other pictures.

A descriptor only proposes pairs; whether two images are one picture is decided on their pixels
(:mod:`memtrain.families.agreement`). So it has to place a copy among its picture's nearest neighbours, not above a
threshold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Descriptor(ABC):
    """Describes images.

    Attributes:
        name: in reports.
        version: changes whenever vectors do, so that vectors kept on disk are not mixed.
    """

    name: str
    version: str

    @abstractmethod
    def describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Vectors of unit length.

        Args:
            images: n images of any size; modes other than RGB are converted.

        Returns:
            `(n, D)`; a row of zeros for an image that shows nothing.
        """
