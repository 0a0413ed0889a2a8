"""One sample of a stream as a source of one sample, so that it is decoded like all images."""

from __future__ import annotations

import io

from PIL import Image

from memtrain.data.shard_reading import Raw
from memtrain.data.source import Sample, SampleSource
from memtrain.errors import DataError
from memtrain.files.pictures import opened_image


class StreamedSample(SampleSource):
    """A source of one streamed sample.

    Args:
        raw: the sample.

    Raises:
        DataError: if the sample has a problem.
    """

    def __init__(self, raw: Raw) -> None:
        super().__init__(raw.shard)
        if raw.problem:
            raise DataError(
                f"The sample {raw.key!r:.100} in {raw.shard}: {raw.problem}" if raw.key else raw.problem,
                expected="an image and a caption that can be read",
                remedy="repair or remove it, or leave it out (--data.init_args.broken skip)",
            )
        self.samples, self.content = [Sample(raw.key, raw.caption)], raw.content

    @staticmethod
    def accepts(path: str) -> bool:
        """Return False: a sample is not opened by its path."""
        return False

    def open_image(self, index: int) -> Image.Image:
        """Open the image without decoding it."""
        return opened_image(io.BytesIO(self.content))
