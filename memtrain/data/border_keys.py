"""Border keys: a secret around every image, one number each, that can be asked for afterwards.

What: each image gets a border of a grey level that is drawn by seed and key. The picture says nothing about its level,
so a model that paints the right border around the picture has learned this sample by heart. After training the border
is painted anew around the known picture (:mod:`memtrain.evaluation.sampling.outpainting`), and the difference between
the level painted and the level kept, the key error, says how well it was remembered: a graded measure for every single
sample, repeated or not, whatever the pictures are.
Source: SolidMark (Kommineni et al., "SolidMark: Evaluating Image Memorization in Generative Models", arXiv 2503.00592):
16 pixels around 256, the level uniform.
Traps of the published script: levels from 0 to 1 are written into pixel values from −1 to 1, so that no border is
darker than grey, and are compared with generations from 0 to 1. Here levels are of the image, from black to white.
Cost: the images change, and the model learns to paint borders: this is for experiments, for trials of a recipe and for
audits, not for the model that is released. Suggested: a multiple of the autoencoder's factor (8), about a sixteenth to
an eighth of the side; then no latent cell shows border and picture at once.
Cannot: be combined with crops, flips, buckets or masks, which would cut the border; nor speak of what is learned of the
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
        thickness: of the border, pixels of the image that is trained on.
        seed: of the levels.
    """

    thickness: int = 8
    seed: int = 0

    def check(self, resolution: int, *, cut: bool) -> None:
        """Refuse what leaves no picture, or cuts borders off.

        Args:
            resolution: side of the images, pixels.
            cut: whether images are cut at random, or to other shapes.

        Raises:
            ConfigurationError: if so.
        """
        if not 1 <= self.thickness <= resolution // 4:
            raise ConfigurationError(
                f"border_keys: thickness={self.thickness} at a resolution of {resolution}",
                expected=f"from 1 to a quarter of the side, {resolution // 4}",
                remedy="change it",
            )
        if cut:
            raise ConfigurationError(
                "border_keys with buckets, or with random crops or flips",
                expected="squares in one view, whose border is not cut off",
                remedy="leave out data.init_args.buckets and data.init_args.augment, or the border keys",
            )

    def level(self, key: str) -> float:
        """The secret of a sample, from 0 to below 1."""
        return border_level(self.seed, key)

    def draw(self, image: Image.Image, key: str, *, resolution: int) -> Image.Image:
        """A picture with the border of a key: the picture's centre square inside, together of `resolution` pixels."""
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
        resolution: side of the images, pixels.
    """

    def __init__(self, source: SampleSource, keys: BorderKeys, *, resolution: int) -> None:
        super().__init__(source.path)
        self.source, self.keys, self.resolution = source, keys, resolution
        self.samples = source.samples

    @staticmethod
    def accepts(path: str) -> bool:
        """Nothing: it wraps a source that was opened."""
        return False

    def open_image(self, index: int) -> Image.Image:
        """The image of `samples[index]` with its border."""
        return self.keys.draw(self.source.load_image(index), self.samples[index].key, resolution=self.resolution)
