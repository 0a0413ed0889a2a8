"""The secrets that a run planted in its data, found again from its configuration: canaries, and borders."""

from __future__ import annotations

import torch
from PIL import Image

from memtrain.data.canaries import MOST, Canaries, canary_caption, draw_canary
from memtrain.data.dataset import CaptionedImages
from memtrain.data.images import to_pixel_values
from memtrain.data.module import TextImageDataModule
from memtrain.evaluation.stages.secrets import BorderSecrets, CanarySecrets
from memtrain.functional.keyed_draws import hash_order
from memtrain.functional.pixels import to_uint8

SIBLINGS = 63
"""Canaries never planted that each planted one is ranked among: six bits with it."""
CONTROLS = 8
"""The number of canaries never planted that are ranked in the same way."""


def canary_secrets(
    data: TextImageDataModule, *, siblings: int = SIBLINGS, controls: int = CONTROLS
) -> CanarySecrets | None:
    """The canaries of a run, with siblings that it never planted; None if it planted none.

    Args:
        data: the data of the run, built.
        siblings: the number of siblings of each canary.
        controls: the number of canaries never planted that are asked for as well.
    """
    canaries = data.canaries
    if canaries is None:
        return None
    planted = [number for number in range(canaries.total) if f"canary#{number}" in data.visits_per_epoch]
    others = list(range(canaries.total, min(canaries.total + controls, MOST)))
    if not planted:
        return None
    numbers = planted + others
    first = canaries.total + len(others)

    def candidates(row: int) -> torch.Tensor:
        of = [numbers[row], *range(first, first + siblings)]
        return torch.stack([_image(data, canaries, number, f"canary#{numbers[row]}") for number in of])

    return CanarySecrets(
        keys=[f"canary#{number}" for number in numbers],
        captions=[canary_caption(canaries.seed, number) for number in numbers],
        repetitions=[data.visits_per_epoch.get(f"canary#{number}", 0) for number in numbers],
        candidates=candidates,
    )


def border_secrets(
    data: TextImageDataModule, *, repeated: int = 64, unique: int = 48, heldout: int = 100
) -> BorderSecrets | None:
    """Samples of a run with borders, trained on and held out; None if it has no borders.

    Args:
        data: the data of the run, built.
        repeated: samples at most that are visited more than once per epoch.
        unique: samples at most that are visited once.
        heldout: held-out samples at most.
    """
    keys, train, held = data.border_keys, data.train_dataset, data.heldout_dataset
    if keys is None or train is None or held is None:
        return None
    visits = data.visits_per_epoch
    often = [row for row, sample in enumerate(train.samples) if visits[sample.key] > 1]
    once = [row for row, sample in enumerate(train.samples) if visits[sample.key] == 1]
    copies = [row for row, sample in enumerate(held.samples) if sample.key not in data.copied_from]
    parts = [
        (train, _some(train, often, repeated)),
        (train, _some(train, once, unique)),
        (held, _some(held, copies, heldout)),
    ]
    samples = [dataset.samples[row] for dataset, rows in parts for row in rows]
    trained = {sample.key for dataset, rows in parts[:2] for sample in (dataset.samples[row] for row in rows)}
    return BorderSecrets(
        keys=[sample.key for sample in samples],
        captions=[sample.caption for sample in samples],
        repetitions=[visits[sample.key] if sample.key in trained else 0 for sample in samples],
        images=torch.stack([to_uint8(dataset.pixel_values(row)) for dataset, rows in parts for row in rows]),
        levels=torch.tensor([keys.level(sample.key) for sample in samples], dtype=torch.float64),
        thickness=keys.thickness,
    )


def _some(dataset: CaptionedImages, rows: list[int], most: int) -> list[int]:
    """At most `most` of `rows`, the same ones each time."""
    return sorted(sorted(rows, key=lambda row: hash_order(dataset.samples[row].key, "secrets"))[:most])


def _image(data: TextImageDataModule, canaries: Canaries, number: int, key: str) -> torch.Tensor:
    """`(3, H, W)` uint8 of a canary as the run would show it; with the border of `key`, where there are borders."""
    image: Image.Image = draw_canary(canaries.seed, number)
    if data.border_keys is not None:
        image = data.border_keys.draw(image, key, resolution=data.resolution)
    return to_uint8(to_pixel_values(image, data.resolution))
