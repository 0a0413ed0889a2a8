"""What a run planted in its data to be asked for: canaries, and borders of a secret level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class CanarySecrets:
    """C canaries, planted and (as a control) never planted.

    Attributes:
        keys: C keys.
        captions: C captions.
        repetitions: C visits per epoch; 0 for what was never planted.
        candidates: the images `(n, 3, H, W)` uint8 of one of them, its own first, by its place in `keys`.
    """

    keys: Sequence[str]
    captions: Sequence[str]
    repetitions: Sequence[int]
    candidates: Callable[[int], Tensor]


@dataclass(frozen=True)
class BorderSecrets:
    """P samples with borders, trained on and held out.

    Attributes:
        keys: P keys.
        captions: P captions.
        repetitions: P visits per epoch; 0 for held-out ones.
        images: `(P, 3, H, W)` uint8.
        levels: `(P,)` from 0 to 1.
        thickness: of the borders, pixels.
    """

    keys: Sequence[str]
    captions: Sequence[str]
    repetitions: Sequence[int]
    images: Tensor
    levels: Tensor
    thickness: int
