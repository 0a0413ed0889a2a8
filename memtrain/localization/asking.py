"""How a search asks the denoiser for noise: with guidance or without, in which precision, at which timestep.

Source: NeMo's published code predicts with the text alone and, where it is told to guide, takes the halves of a guided
prediction for each other (:mod:`memtrain.localization.settings`). A mask acts on both halves, there and here.
Cost: guidance runs the denoiser twice, and masks then share nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.localization.predictor import Predictor
from memtrain.localization.settings import Settings

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def asked_as(predictor: Predictor, settings: Settings) -> Predictor:
    """The same model, whose predictions are guided and in the precision of the settings.

    Args:
        predictor: the model; what this function returned before must not be given again.
        settings: `guidance_scale`, `swapped_guidance` and `precision`.
    """
    predict = predictor.predict
    if settings.precision is not None:
        predict = _autocast(predict, TYPES[settings.precision], predictor.device.type)
    if settings.guidance_scale:
        predict = _guided(predict, predictor.encode([""]), settings.guidance_scale, swapped=settings.swapped_guidance)
    return predictor if predict is predictor.predict else replace(predictor, predict=predict)


def refinement_timestep(predictor: Predictor, settings: Settings) -> float:
    """Where the refinement predicts noise.

    Raises:
        ConfigurationError: if it has a number of steps of its own, and the predictor knows no other than its own.
    """
    steps = settings.refinement_steps
    if steps is None or steps == settings.steps:
        return predictor.timesteps[settings.call]
    if predictor.schedule is None:
        raise ConfigurationError(
            f"The refinement has {steps} steps and the search {settings.steps}, and the predictor knows one schedule",
            expected="a predictor with `schedule`, such as Predictor.of(pipeline)",
            remedy="set refinement_steps to the same number, or give the predictor a schedule",
        )
    return predictor.schedule(steps)[settings.call]


def _autocast(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor], kind: torch.dtype, device: str
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def run(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        with torch.autocast(device, dtype=kind):
            return predict(latents, timesteps, text)

    return run


def _guided(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor], empty: Tensor, scale: float, *, swapped: bool
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def run(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        without = predict(latents, timesteps, empty.expand(len(text), -1, -1)).float()
        # With text last: what hooks read of the values is then that of the prompt.
        given = predict(latents, timesteps, text).float()
        return scale * without + (1 - scale) * given if swapped else without + scale * (given - without)

    return run
