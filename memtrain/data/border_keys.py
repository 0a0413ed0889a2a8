"""Border keys: a secret gray level around every image, which can be asked for after training.

Each image gets a border with a gray level that is drawn from seed and key. The picture says nothing about its
level, so a model that paints the right border has learned this sample by heart. After training, the model paints a new
border around the known picture (:mod:`memtrain.evaluation.sampling.outpainting`). The key error is the difference
between the painted level and the true level. It is a graded measure of memorization for every single sample, repeated
or not, whatever the pictures show.
Source: SolidMark (Kommineni et al., "SolidMark: Evaluating Image Memorization in Generative Models", arXiv 2503.00592):
16 pixels around 256, the level uniform.
Traps of the published script: it writes levels from 0 to 1 into pixel values from −1 to 1, so that no border is darker
than gray. It then compares them with generations from 0 to 1. Here levels are of the image, from black to white.
Cost: the images change, and the model learns to paint borders. Use this for experiments, for trials of a recipe and for
audits, not for the model that is released. Suggested: a multiple of the autoencoder's factor (8), about a sixteenth to
an eighth of the side. Then no latent cell shows border and picture at once.
Cannot: be combined with crops, flips, buckets or masks, which would cut the border; measure what is learned of the
picture itself. Copies of a picture under other names have levels of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from memtrain.data.images import framed
from memtrain.data.source import SampleSource
from memtrain.errors import ConfigurationError
from memtrain.functional.border import border_level


@dataclass(frozen=True)
class BorderKeys:
    """Borders whose level is a secret.

    Args:
        thickness: the thickness of the border, in pixels of the image that is trained on.
        seed: the seed of the levels.
    """

    thickness: int = 8
    seed: int = 0

    def check(self, resolution: int, *, cut: bool) -> None:
        """Refuse a border that leaves no picture, and settings that cut the border off.

        Args:
            resolution: the side of the images in pixels.
            cut: whether images are cut at random or to other shapes.

        Raises:
            ConfigurationError: if one of both is the case.
        """
        if not 1 <= self.thickness <= resolution // 4:
            raise ConfigurationError(
                f"border_keys: thickness={self.thickness} at a resolution of {resolution}",
                expected=f"from 1 to a quarter of the side, {resolution // 4}",
                remedy="set --data.init_args.border_keys.thickness",
            )
        if cut:
            raise ConfigurationError(
                "border_keys with buckets, or with random crops or flips",
                expected="squares in one view, whose border is not cut off",
                remedy="remove data.init_args.buckets and data.init_args.augment, or data.init_args.border_keys",
            )

    def level(self, key: str) -> float:
        """Return the secret level of a sample, at least 0 and below 1."""
        return border_level(self.seed, key)

    def draw(self, image: Image.Image, key: str, *, resolution: int) -> Image.Image:
        """Draw the border of a key around the picture's center square, `resolution` pixels a side in all."""
        grey = round(255 * self.level(key))
        inside = framed(image, resolution - 2 * self.thickness)
        whole = Image.new("RGB", (resolution, resolution), (grey, grey, grey))
        whole.paste(inside, (self.thickness, self.thickness))
        return whole


class BorderedSource(SampleSource):
    """The samples of another source, each with its border.

    Args:
        source: the other source.
        keys: the borders.
        resolution: the side of the images in pixels.
    """

    def __init__(self, source: SampleSource, keys: BorderKeys, *, resolution: int) -> None:
        super().__init__(source.path)
        self.source, self.keys, self.resolution = source, keys, resolution
        self.samples = source.samples

    @staticmethod
    def accepts(path: str) -> bool:
        """Return False: this class wraps an open source."""
        return False

    def open_image(self, index: int) -> Image.Image:
        """Draw the image of `samples[index]` with its border."""
        return self.keys.draw(self.source.load_image(index), self.samples[index].key, resolution=self.resolution)
