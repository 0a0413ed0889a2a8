"""Noise predictions of a search: guidance, precision and timestep.

Source: NeMo's published code predicts with the text alone. With guidance it swaps the halves of a guided prediction
(:mod:`memtrain.localization.settings`). A mask acts on both halves, in the published code and here.
Cost: guidance runs the denoiser twice, and masks then share no stages.
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
    """Return a predictor with the guidance and the precision of the settings.

    Args:
        predictor: the model; not a result of this function.
        settings: the settings, for `guidance_scale`, `swapped_guidance` and `precision`.
    """
    predict = predictor.predict
    if settings.precision is not None:
        predict = _autocast(predict, TYPES[settings.precision], predictor.device.type)
    if settings.guidance_scale:
        predict = _guided(predict, predictor.encode([""]), settings.guidance_scale, swapped=settings.swapped_guidance)
    return predictor if predict is predictor.predict else replace(predictor, predict=predict)


def refinement_timestep(predictor: Predictor, settings: Settings) -> float:
    """Return the timestep at which the refinement predicts noise.

    Raises:
        ConfigurationError: if the refinement has another number of steps, and the predictor has only one schedule.
    """
    steps = settings.refinement_steps
    if steps is None or steps == settings.steps:
        return predictor.timesteps[settings.call]
    if predictor.schedule is None:
        raise ConfigurationError(
            f"The refinement has {steps} steps and the search {settings.steps}, but the predictor has only one "
            f"schedule",
            expected="a predictor with `schedule`, such as Predictor.of(pipeline)",
            remedy="set refinement_steps to the same number, or pass a predictor with `schedule`",
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
        # The call with text comes last, so that hooks read the values of the prompt.
        given = predict(latents, timesteps, text).float()
        return scale * without + (1 - scale) * given if swapped else without + scale * (given - without)

    return run
