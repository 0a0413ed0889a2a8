"""One sample of a stream as a source of one sample, so that it is decoded as all images are."""

from __future__ import annotations

import io

from PIL import Image

from memtrain.data.shard_reading import Raw
from memtrain.data.source import Sample, SampleSource
from memtrain.errors import DataError
from memtrain.files.pictures import opened_image


class StreamedSample(SampleSource):
    """See the module.

    Args:
        raw: the sample.

    Raises:
        DataError: if it has a problem.
    """

    def __init__(self, raw: Raw) -> None:
        super().__init__(raw.shard)
        if raw.problem:
            raise DataError(
                f"The sample {raw.key!r:.100} in {raw.shard}: {raw.problem}" if raw.key else raw.problem,
                expected="an image and a caption that can be read",
                remedy="mend or remove it, or say broken: skip",
            )
        self.samples, self.content = [Sample(raw.key, raw.caption)], raw.content

    @staticmethod
    def accepts(path: str) -> bool:
        """Nothing: it is made of a sample."""
        return False

    def open_image(self, index: int) -> Image.Image:
        """The image, not yet decoded."""
        return opened_image(io.BytesIO(self.content))
