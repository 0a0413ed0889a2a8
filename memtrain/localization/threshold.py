"""The similarity between seeds above which a prompt counts as memorized.

Source: NeMo (Hintersdorf et al., NeurIPS 2024, section 3.1): mean plus one standard deviation of the highest pairwise
MS-SSIM of each of many prompts that the model does not memorize. It is 0.428 for Stable Diffusion 1.4 (0.358 + 0.070,
50,000 captions). The value depends on the model, the latent size and the settings, and cannot be used for others. The
published script guides the predictions with a scale of 7 and swaps the two halves, unlike the search that uses the
threshold. Here the settings apply to both, by default without guidance.

Cost: one denoiser call on `seeds` images per prompt. With one standard deviation about a sixth of prompts that are not
memorized are above it; the paper reports neurons for 11.6 %.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.prompt_texts import prompt_stream
from memtrain.files.text import read_json
from memtrain.functional.noise import SimilarityWindow, noise_difference, similarity_matrix
from memtrain.localization.asking import asked_as
from memtrain.localization.predictor import Predictor
from memtrain.localization.settings import Settings
from memtrain.records import written_whole

FORMAT = "memtrain.similarity_threshold.1"
PAPER = 0.428
"""Threshold of Stable Diffusion 1.4 with NeMo's published settings."""


@dataclass(frozen=True)
class Threshold:
    """A calibrated threshold and its origin.

    Attributes:
        value: the threshold, mean + `deviations` · std.
        mean: the mean of the prompts' highest pairwise similarity.
        std: the unbiased standard deviation.
        count: the number of prompts.
        model: the origin of the model.
        source: the description of the prompts.
        settings: the settings that it holds for: seeds, seed, steps, call, data range and others.
        window: scales, kernel and sigma of the similarity.
        deviations: the number of standard deviations above the mean.
    """

    value: float
    mean: float
    std: float
    count: int
    model: str
    source: str
    settings: dict[str, Any]
    window: dict[str, Any]
    deviations: float = 1.0

    def check(self, settings: Settings, window: SimilarityWindow) -> None:
        """Check that the threshold was measured with these settings.

        Raises:
            ConfigurationError: if it was measured with others.
        """
        wanted = {**comparison(settings), **asdict(window)}
        # Earlier thresholds lack the later settings, which had their default values.
        measured = {**comparison(Settings()), **self.settings, **self.window}
        differing = {name: value for name, value in measured.items() if wanted[name] != value}
        if differing:
            raise ConfigurationError(
                f"The threshold was measured with {differing}, and the search has "
                f"{ {name: wanted[name] for name in differing} }",
                expected="the same settings in both",
                remedy="calibrate again with these settings",
            )

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Threshold:
        """Read a file that :meth:`save` wrote.

        Raises:
            ConfigurationError: if the file holds something else.
        """
        try:
            content = read_json(path)
            if content.pop("format") != FORMAT:
                raise ValueError("of another format")
            return _checked(Threshold(**content))
        except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"{path} holds no threshold: {error}",
                expected=f"JSON of format {FORMAT}",
                remedy="check the path, or calibrate again",
            ) from error


def _checked(threshold: Threshold) -> Threshold:
    """Check the types of a threshold's fields.

    Raises:
        TypeError: if a type is wrong.
    """
    for name in ("value", "mean", "std", "deviations"):
        if type(getattr(threshold, name)) not in (int, float):
            raise TypeError(f"{name} is no number")
    for name in ("settings", "window"):
        if not isinstance(getattr(threshold, name), dict):
            raise TypeError(f"{name} is no object")
    return threshold


def comparison(settings: Settings) -> dict[str, Any]:
    """Return the settings on which a similarity depends."""
    names = ("seeds", "seed", "steps", "call", "data_range", "cropped", "guidance_scale", "precision")
    found = {name: getattr(settings, name) for name in names}
    return {**found, "swapped_guidance": settings.swapped_guidance and settings.guidance_scale != 0}


def pairwise_scores(
    predictor: Predictor, prompts: Iterable[str], *, settings: Settings, batch_size: int | None = None
) -> Tensor:
    """Compute the highest pairwise similarity of each seed, `(P, K)`; arguments as for :func:`pairwise`."""
    return pairwise(predictor, prompts, settings=settings, batch_size=batch_size).amax(dim=2)


@torch.no_grad()
def pairwise(
    predictor: Predictor, prompts: Iterable[str], *, settings: Settings, batch_size: int | None = None
) -> Tensor:
    """Compute the unmasked similarity of each seed's noise difference with that of every other seed, `(P, K, K)`.

    Args:
        predictor: the model.
        prompts: the P prompts.
        settings: the settings of seeds, timestep, guidance, precision and similarity.
        batch_size: the number of images in one denoiser call; by default the predictor's.
    """
    predictor = asked_as(predictor, settings)
    noise = predictor.noise(settings.seeds, seed=settings.seed)
    timestep = torch.tensor(predictor.timesteps[settings.call], device=predictor.device)
    found: list[Tensor] = []
    size = predictor.batch_size if batch_size is None else batch_size
    stream, at_once = prompt_stream(prompts), max(1, size // settings.seeds)
    with predictor.evaluating():
        while batch := list(itertools.islice(stream, at_once)):
            text = predictor.encode(batch).repeat_interleave(settings.seeds, dim=0)
            latents = noise.repeat(len(batch), 1, 1, 1)
            parts = [
                predictor.predict(part, timestep.expand(len(part)), words)
                for part, words in zip(latents.split(size), text.split(size), strict=True)
            ]
            for differences in noise_difference(torch.cat(parts), latents).split(settings.seeds):
                matrix = similarity_matrix(differences, data_range=settings.data_range, cropped=settings.cropped)
                found.append(matrix.cpu())
    return torch.stack(found) if found else torch.zeros(0, settings.seeds, settings.seeds)


def calibrate_threshold(
    predictor: Predictor,
    prompts: Iterable[str],
    *,
    settings: Settings | None = None,
    deviations: float = 1.0,
    batch_size: int | None = None,
    source: str = "",
    scores: Tensor | None = None,
) -> Threshold:
    """Calibrate the mean plus one standard deviation of the prompts' highest pairwise similarity.

    Args:
        predictor: the model.
        prompts: the prompts, at least two, that the model does not memorize.
        settings: the settings of the search.
        deviations: the number of standard deviations above the mean; 1 in the paper.
        batch_size: the number of images in one denoiser call; by default the predictor's.
        source: the description of the prompts.
        scores: the scores of the prompts from :func:`pairwise_scores`, `(P, K)`, if they are known.

    Raises:
        ConfigurationError: if there are fewer than two prompts, or latents are too small to compare.
    """
    settings = settings or Settings()
    window = SimilarityWindow.of(*predictor.shape[1:])
    if scores is None:
        scores = pairwise_scores(predictor, prompts, settings=settings, batch_size=batch_size)
    scores = scores.amax(dim=1)
    if len(scores) < 2:
        raise ConfigurationError(
            f"A threshold cannot be calibrated on {len(scores)} prompts",
            expected="at least 2, and usually hundreds",
            remedy="name more prompts that the model does not memorize",
        )
    mean, std = float(scores.mean()), float(scores.std())
    return Threshold(
        value=mean + deviations * std,
        mean=mean,
        std=std,
        count=len(scores),
        model=predictor.name,
        source=source,
        settings=comparison(settings),
        window=asdict(window),
        deviations=deviations,
    )
