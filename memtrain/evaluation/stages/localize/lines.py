"""Repeated lines in a file of prompts: each prompt is searched once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memtrain.errors import DataError
from memtrain.evaluation.stages.base import StageInput

log = logging.getLogger(__name__)


def each_once(given: StageInput, first: Sequence[int]) -> StageInput:
    """Keep only the first line of each prompt, in `given`."""
    if len(first) == len(given.prompts):
        return given
    own = given.own_images
    if own is not None:
        place = {given.prompts[row].text: row for row in first}
        other = sum(not torch.equal(own[row], own[place[line.text]]) for row, line in enumerate(given.prompts))
        if other:
            log.warning(
                "%d lines repeat a prompt with another image. Each prompt is compared with the image of its first line",
                other,
            )
        own = own[list(first)]
    return replace(given, prompts=[given.prompts[row] for row in first], own_images=own)


def check_images(own_images: Tensor, count: int) -> None:
    """Refuse own images that do not fit the prompts, before the search takes minutes."""
    if len(own_images) != count or own_images.dtype != torch.uint8:
        raise DataError(
            f"{count} prompts and own images {tuple(own_images.shape)} of {own_images.dtype}",
            expected="one image (3, H, W) of uint8 per prompt",
            remedy="pass both in the same order",
        )
