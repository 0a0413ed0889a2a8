"""Secrets that a run planted in its data: canaries, and borders with a secret level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class CanarySecrets:
    """C canaries, planted or (as a control) never planted.

    Attributes:
        keys: the C keys.
        captions: the C captions.
        repetitions: the C numbers of visits per epoch; 0 for canaries that were never planted.
        candidates: a function from the place of a canary in `keys` to its candidate images `(n, 3, H, W)` uint8, its
            own image first.
    """

    keys: Sequence[str]
    captions: Sequence[str]
    repetitions: Sequence[int]
    candidates: Callable[[int], Tensor]


@dataclass(frozen=True)
class BorderSecrets:
    """P samples with borders, trained on or held out.

    Attributes:
        keys: the P keys.
        captions: the P captions.
        repetitions: the P numbers of visits per epoch; 0 for held-out samples.
        images: the images, `(P, 3, H, W)` uint8.
        levels: the secret levels, `(P,)`, from 0 to 1.
        thickness: the thickness of the borders in pixels.
    """

    keys: Sequence[str]
    captions: Sequence[str]
    repetitions: Sequence[int]
    images: Tensor
    levels: Tensor
    thickness: int
