"""DeepSSIM-like: cosine of features that are trained on the user's own pictures to imitate SSIM.

Method: a small convolutional network maps an image to a vector. The cosine of two vectors is near the structural
similarity (SSIM) of the two images before small shifts, scalings or changes of brightness. So the measure needs one
product of matrices instead of an SSIM for each pair, and no exact alignment.
Source: "A Novel Metric for Detecting Memorization in Generative Models for Brain MRI Synthesis" (DeepSSIM, 2025): the
loss (squared difference of cosine and SSIM) and augmentations that keep structure. Their network is far larger and
trained on brain MRI, so its weights do not suit other data; hence "like". SSIM is that of torchmetrics.
Trap: pairs of different pictures hardly ever have a high SSIM. A quarter of the pairs are a picture and its random
blend with another picture, so that the network also learns the upper half of the scale.
Cost: a quarter of a minute of training on one core, kept in a file if one is named; then below 1 ms an image.
Cannot: see mirrored copies or large crops, which SSIM does not see, nor be compared between two data sets. With only a
dozen pictures it imitates SSIM badly, which the calibration shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from memtrain.errors import ConfigurationError
from memtrain.evaluation.measures.copying.base import CopyMeasure, CopyWeights, scaled
from memtrain.families.registration import luminance
from memtrain.files.whole import written_whole

SIDE, WIDTH, NUMBERS = 32, 24, 128
STEPS, PAIRS, LEARNING_RATE = 300, 48, 3e-3
MOST = 1024
"""Largest number of pictures to train on."""


class DeepSSIM(CopyMeasure):
    """Cosine of features that imitate SSIM.

    Args:
        path: the safetensors file of the network; it is read if it exists, and else written after training.
        steps: the number of training steps; by default 300.
        seed: the seed of the training.
    """

    name = "deep_ssim"

    def __init__(self, path: str | None = None, *, steps: int | None = None, seed: int = 0) -> None:
        self._path, self._seed = path, seed
        self._steps = STEPS if steps is None else steps
        self._network: nn.Module | None = None

    @classmethod
    def made(cls, weights: CopyWeights) -> Self:
        """Make the measure with the named file, if there is one."""
        return cls(weights.deep_ssim)

    def learn(self, training: Tensor) -> None:
        """Train the network, or read it from its file.

        Raises:
            ConfigurationError: if the file holds another network, or there are no pictures to learn from.
        """
        if self._path is not None and Path(self._path).is_file():
            self._network = _read(self._path)
            return
        if not len(training):
            raise ConfigurationError(
                "deep_ssim has no training pictures to learn from",
                expected="at least one picture, better some hundreds",
                remedy="leave out deep_ssim from --copy_measures",
            )
        chosen = torch.linspace(0, len(training) - 1, min(len(training), MOST)).long().unique()
        self._network = trained(_grey(training[chosen]), steps=self._steps, seed=self._seed)
        if self._path is not None:
            with written_whole(Path(self._path)) as unfinished:
                save_file(self._network.state_dict(), unfinished)

    @torch.inference_mode()
    def describe(self, images: Tensor) -> Tensor:
        """Return features `(n, 128)` of unit length; a network without training learns from these images."""
        if self._network is None:
            with torch.inference_mode(False):
                self.learn(images)
        assert self._network is not None  # set by learn
        return torch.cat([self._network(_grey(part)) for part in images.split(256)]).clone()

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the cosine, which is near the SSIM."""
        return first @ second.T


class Embedding(nn.Sequential):
    """Network from grey values `(n, 1, 32, 32)` in 0 to 1 to vectors `(n, 128)` of unit length."""

    def __init__(self) -> None:
        super().__init__(
            *_block(1, WIDTH),
            *_block(WIDTH, 2 * WIDTH),
            *_block(2 * WIDTH, 4 * WIDTH),
            nn.Flatten(),
            nn.Linear(4 * WIDTH * (SIDE // 8) ** 2, NUMBERS),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return unit vectors."""
        return F.normalize(super().forward(2 * images - 1), dim=1)


def _block(channels: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(4, out), nn.SiLU()]


def trained(images: Tensor, *, steps: int = STEPS, seed: int = 0) -> Embedding:
    """Train a network whose cosines imitate the SSIM of these images.

    Args:
        images: the images, `(n, 1, 32, 32)`, from 0 to 1.
        steps: the number of training steps, with 48 pairs each.
        seed: the seed of the training; the state of torch's generator is restored afterwards.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = Embedding()
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for _ in range(steps):
            first, second = _pairs(images)
            wanted = ssim(first, second)
            found = (network(_augmented(first)) * network(_augmented(second))).sum(dim=1)
            loss = (found - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Compute the SSIM `(n,)` of each pair of images `(n, 1, H, W)` from 0 to 1."""
    found = structural_similarity_index_measure(first, second, data_range=1.0, sigma=1.0, reduction="none")
    assert isinstance(found, Tensor)  # a tuple only with maps
    return found.view(-1)


def _pairs(images: Tensor) -> tuple[Tensor, Tensor]:
    """Draw pairs of images; in a quarter of them, the second is the first blended with another picture."""
    first, second = (images[torch.randint(len(images), (PAIRS,))] for _ in range(2))
    share = torch.where(torch.rand(PAIRS) < 0.25, torch.rand(PAIRS), torch.ones(PAIRS)).view(-1, 1, 1, 1)
    return first, share * second + (1 - share) * first


def _augmented(images: Tensor) -> Tensor:
    """Shift, scale and change brightness a little, with the same structure."""
    n = len(images)
    matrices = torch.zeros(n, 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1 + 0.08 * (2 * torch.rand(n) - 1)
    matrices[:, :, 2] = 0.1 * (2 * torch.rand(n, 2) - 1)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, offset = 1 + 0.1 * torch.randn(n, 1, 1, 1), 0.04 * torch.randn(n, 1, 1, 1)
    return (gain * moved + offset).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    return luminance(scaled(images, SIDE))


def _read(path: str) -> Embedding:
    network = Embedding()
    try:
        network.load_state_dict(load_file(path))
    except Exception as error:  # safetensors' own error is no subclass of ValueError
        raise ConfigurationError(
            f"{path} does not hold the network of deep_ssim: {str(error).splitlines()[0]}",
            expected="a file that deep_ssim wrote",
            remedy="name a file that does not exist yet, in which the trained network is kept",
        ) from error
    return network.eval().requires_grad_(False)
