"""The look of a picture: at most 184 bytes that recognize the picture when it comes again.

- A *fingerprint*: a hash of up to 4,096 of its values. Copies with equal values have the same fingerprint.
- A *figure*: the low frequencies of the picture. The picture is reduced to 16 by 16 cells, and colors become brightness
  and two color differences. The lowest cosine frequencies of each channel are kept without the mean, on one scale. So
  brightness, contrast and fine detail (JPEG blocks, noise, small text) do not matter. Mirroring a picture turns the
  sign of its odd horizontal frequencies, so their absolute values serve for mirror images.

Figures are whole numbers of 8 bits, so similarities are sums of whole numbers: the same on every machine and process,
whatever the order of summation.

Pixels and latents with any number of channels are accepted, also as rows of patches `(B, tokens, channels)` of a square
picture. For a video, the mean over its frames counts. Latents of a mirrored picture are only nearly mirrored latents.

Source: pooling to few cells and low cosine frequencies come from perceptual hashes (Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010). Cost: one pass over the batch. Cannot: recognize a picture in a
crop or shift of more than a few per cent; tell two flags of equal layout and brightness apart.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 16
"""The rows and columns to which a picture is reduced."""
MOST = 176
"""The largest number of values in a figure."""
PLACES = 4096
"""The largest number of values in a fingerprint's hash."""
HASH_BYTES = 8
"""The size of a fingerprint, which comes first in a packed look, in bytes."""

# ITU-R BT.601: brightness, blue and red difference.
_COLOURS = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))


def looks(pictures: Tensor) -> Tensor | None:
    """Return the packed fingerprint and figure of each picture.

    Args:
        pictures: `(B, channels, H, W)`, `(B, channels, frames, H, W)`, or `(B, tokens, channels)` of square pictures.

    Returns:
        `(B, 8 + D)` int8 on the device of `pictures`, without waiting for it; None for values of another form.
    """
    shaped = _as_pictures(pictures.detach())
    if shaped is None:
        return None
    return torch.cat([row_hashes(pictures.detach()).view(torch.int8).view(-1, HASH_BYTES), _figures(shaped)], dim=1)


def fingerprints(packed: Tensor) -> list[int]:
    """Return the fingerprints in packed looks, B whole numbers."""
    # A single row would keep its stride, and could not be read as whole numbers.
    return packed[:, :HASH_BYTES].reshape(-1).clone().view(torch.int64).tolist()


def figures(packed: Tensor) -> Tensor:
    """Return the figures in packed looks, `(B, D)` int8; a row of zeros for a plain picture."""
    return packed[:, HASH_BYTES:]


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return the similarity of pictures to each other or to their mirror images: 1 for equal figures.

    Args:
        first: `(n, D)` int8 figures.
        second: `(m, D)` int8 figures.

    Returns:
        `(n, m)` float32, 0 for plain pictures; the same on every machine.
    """
    # Products of 8 bits and their sums are exact in fp32, because they stay below 2**24.
    one, two, even = first.float(), second.float(), even_frequencies(first.shape[1])
    upright = one[:, :even] @ two[:, :even].T
    turned = (one[:, even:] @ two[:, even:].T).abs_()
    return upright.add_(turned).mul_(_inverse_length(one)[:, None]).mul_(_inverse_length(two)[None])


def _inverse_length(figures: Tensor) -> Tensor:
    squares = figures.square().sum(dim=1).double()
    return torch.where(squares > 0, squares.clamp(min=1).rsqrt(), 0.0).float()


@lru_cache
def even_frequencies(width: int) -> int:
    """Return how many of a figure's numbers keep their sign in a mirror; these numbers come first."""
    for channels in range(1, MOST // 2 + 1):
        frequencies = _frequencies(channels)
        if len(frequencies) == width:
            return sum(across % 2 == 0 for _, _, across in frequencies)
    raise ValueError(f"no figure has {width} numbers")


def caption_name(text: str) -> str | None:
    """Return a hash of a caption, without regard to case and white space; None for an empty caption."""
    words = " ".join(text.casefold().split())
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:16] if words else None


def embedding_hashes(text: Tensor) -> Tensor:
    """Return hashes `(B,)` int64 of text embeddings `(B, T, width)`. Rounding errors nearly never change them.

    Eight random projections are rounded to a 512th of the embedding's length. Half precision that is not equal bit for
    bit, as in batches of another size, gives other hashes.
    """
    flat = text.detach().flatten(1).float()
    length = flat.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return row_hashes((512 * (flat @ _directions(flat.shape[1], flat.device)) / length).round().to(torch.int32))


@lru_cache(maxsize=2)
def _directions(width: int, device: torch.device) -> Tensor:
    return torch.randn(width, 8, generator=torch.Generator().manual_seed(0)).to(device)


@lru_cache
def _frequencies(channels: int) -> tuple[tuple[int, int, int], ...]:
    """Return the channel, downward and horizontal frequency of each number of a figure; even ones come first."""
    if channels == 3:
        # Eyes and cameras resolve brightness more finely than color.
        reaches: tuple[int, ...] = (11, 5, 5)
    else:
        each = MOST // channels
        reaches = (max(k for k in range(1, CELLS + 1) if k * (k + 1) // 2 - 1 <= each),) * channels
    chosen = [
        (channel, down, across)
        for channel, reach in enumerate(reaches)
        for down in range(reach)
        for across in range(reach)
        if 0 < down + across < reach
    ]
    return tuple(sorted(chosen, key=lambda one: one[2] % 2))


def _as_pictures(values: Tensor) -> Tensor | None:
    """Return values as `(B, channels, H, W)`; None if they are not pictures."""
    if values.dim() == 5:
        values = values.float().mean(dim=2)
    if values.dim() == 3:
        side = math.isqrt(values.shape[1])
        if side * side != values.shape[1]:
            return None
        values = values.transpose(1, 2).unflatten(2, (side, side))
    small = values.dim() != 4 or min(values.shape[2:]) < 4 or not len(values)
    return None if small or not 1 <= values.shape[1] <= MOST // 2 else values


def _figures(pictures: Tensor) -> Tensor:
    """Return figures, `(B, D)` int8."""
    cells = F.adaptive_avg_pool2d(pictures.float(), min(CELLS, *pictures.shape[2:]))
    if cells.shape[1] == 3:
        cells = torch.einsum("ij,bjhw->bihw", cells.new_tensor(_COLOURS), cells)
    frequencies = _frequencies(cells.shape[1])
    size = cells.shape[-1]
    places = torch.arange(size, device=cells.device) + 0.5
    waves = torch.cos(math.pi / size * torch.arange(size, device=cells.device)[:, None] * places)
    waves[0] *= 0.5**0.5
    spectrum = waves @ cells @ waves.T
    # Frequencies that a picture with fewer cells lacks are 0.
    spectrum = F.pad(spectrum, (0, CELLS - size, 0, CELLS - size))
    index = torch.tensor(frequencies, device=cells.device).T
    found = spectrum[:, index[0], index[1], index[2]]
    largest = found.abs().amax(dim=1, keepdim=True)
    # A plain picture has nothing but rounding errors.
    plain = largest <= 1e-4 * cells.abs().amax(dim=(1, 2, 3))[:, None].clamp(min=1e-6)
    return torch.where(plain, 0.0, 127 * found / largest.clamp(min=1e-12)).nan_to_num(0.0).round().to(torch.int8)


def row_hashes(rows: Tensor) -> Tensor:
    """Return hashes `(B,)` int64 of rows `(B, ...)`, equal if the sampled values are; nothing waits for the device."""
    flat = rows.reshape(len(rows), -1)
    count = min(PLACES, flat.shape[1])
    number = torch.arange(count, dtype=torch.int64, device=flat.device)
    # The chosen places are spread over rows and columns; a short row uses all of its values.
    chosen = flat[:, number if count == flat.shape[1] else number * 2654435761 % flat.shape[1]].contiguous()
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[chosen.element_size()]
    return (chosen.view(kind).to(torch.int64) * _odd_numbers(number)).sum(dim=1)


def _odd_numbers(number: Tensor) -> Tensor:
    """Return an odd number of 64 random bits for each number: SplitMix64's finalizer (Steele et al., OOPSLA 2014)."""
    mixed = (number + 1) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ _shifted(mixed, shift)) * _signed(factor)
    return (mixed ^ _shifted(mixed, 31)) | 1


def _shifted(value: Tensor, by: int) -> Tensor:
    """Shift to the right, with zeros moved in."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
