"""Laying one picture over another: mirrored or not, scaled, shifted and turned a little, by their thumbnails.

For each pair (a, b) the transform of b under which its luminance is most like that of a. A coarse search takes
the best few of all shifts at seven scales, mirrored or not, by circular cross-correlation of band-passed luminance at
16 pixels; Gauss-Newton steps then refine scale by axis, rotation and shift, first at 16 pixels, then at 32 for those
pairs that still look alike.
Source: Kuglin and Hines, "The phase correlation image alignment method" (1975), without whitening; Lucas and Kanade,
"An iterative image registration technique" (1981), with a gain and an offset estimated anew in each step.
Cost: about 0.1 ms for a pair that is dropped after the coarse search, 0.5 ms for one that is kept, on one core.
Cannot: undo rotations beyond some 10 degrees, upside-down copies, or crops that keep less than half of the width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 32
"""Height and width of a thumbnail."""
COARSE = 16
SCALES = tuple(2 ** (step / 4) for step in range(-3, 4))
"""Of b, in the coarse search: from a crop of 59 % to one of 168 %."""
KEPT = 2
"""Transforms that the coarse search hands on."""
LARGEST_SCALE, LARGEST_TURN, LARGEST_STRETCH = 2.0, 0.2, 1.25
STEPS = 3
"""Refining steps at each resolution."""


@dataclass(frozen=True)
class Placement:
    """Where b lies over a, for m pairs.

    Attributes:
        motion: `(m, 5)`: horizontal and vertical scale, rotation, horizontal and vertical shift. They lead from places
            in a to places in b, in units of half a side, counted from the centre.
        mirrored: `(m,)` bool, whether b is mirrored before.
    """

    motion: Tensor
    mirrored: Tensor

    def __getitem__(self, index: Tensor) -> Placement:
        return Placement(self.motion[index], self.mirrored[index])

    def matrices(self) -> Tensor:
        """`(m, 2, 3)`, as :func:`torch.nn.functional.affine_grid` takes them."""
        across, down, turn, x, y = self.motion.unbind(dim=1)
        side = torch.where(self.mirrored, -1.0, 1.0)
        cosine, sine = turn.cos(), turn.sin()
        first = torch.stack([side * across * cosine, -side * across * sine, side * x], dim=1)
        return torch.stack([first, torch.stack([down * sine, down * cosine, y], dim=1)], dim=1)

    def inverse(self) -> Placement:
        """Where a lies over b: exact for one scale in both directions, and near it otherwise."""
        across, down, turn, x, y = self.motion.unbind(dim=1)
        side = torch.where(self.mirrored, -1.0, 1.0)
        back = -side * turn
        cosine, sine = turn.cos(), turn.sin()
        moved_x, moved_y = x / across, y / down
        shifts = [-side * (cosine * moved_x + sine * moved_y), sine * moved_x - cosine * moved_y]
        return Placement(torch.stack([1 / across, 1 / down, back, *shifts], dim=1), self.mirrored)

    def cover(self, side: int = SIDE) -> Tensor:
        """How far each pixel of a is covered by b, from 0 to 1, `(m, side, side)`."""
        return _inside(self.matrices(), side)

    def place(self, images: Tensor) -> Tensor:
        """The images b as they lie over a, `(m, C, H, W)`; border pixels go on where b does not cover a."""
        rows, columns = _axes(images, images.shape[-1])
        grid = torch.stack(_places(self.matrices(), rows, columns), dim=3)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def luminance(images: Tensor) -> Tensor:
    """`(n, 3, H, W)` to `(n, 1, H, W)`."""
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def spectra(images: Tensor) -> Tensor:
    """Spectra of unit length of the images as they are, for the coarse search, `(n, 16, 9)` complex."""
    return _spectrum(_coarse(luminance(images)))


def scaled_spectra(images: Tensor) -> Tensor:
    """Spectra of the images at every scale, plain ones first, then mirrored, `(n, 14, 16, 9)` complex."""
    grey = _coarse(luminance(images))
    found = []
    for picture in (grey, grey.flip(3)):
        for scale in SCALES:
            matrix = grey.new_tensor([[1 / scale, 0, 0], [0, 1 / scale, 0]]).expand(len(grey), 2, 3)
            grid = F.affine_grid(matrix, list(grey.shape), align_corners=False)
            found.append(_spectrum(F.grid_sample(picture, grid, padding_mode="border", align_corners=False)))
    return torch.stack(found, dim=1)


def coarse_placements(first: Tensor, second: Tensor) -> tuple[Tensor, Placement]:
    """The best few placements of each pair by cross-correlation.

    Args:
        first: `(m, 16, 9)`, from :func:`spectra`.
        second: `(m, 14, 16, 9)`, from :func:`scaled_spectra`.

    Returns:
        Correlations `(m, KEPT)`, best first, and `m * KEPT` placements, those of a pair one after the other.
    """
    correlation = torch.fft.irfft2(first[:, None].conj() * second, s=(COARSE, COARSE))
    best, at = correlation.flatten(2).max(dim=2)
    best, kind = best.topk(KEPT, dim=1)
    at = at.gather(1, kind)
    down, right = ((shift + COARSE // 2) % COARSE - COARSE // 2 for shift in (at // COARSE, at % COARSE))
    scale = 1 / first.real.new_tensor(SCALES)[kind % len(SCALES)]
    shifts = [right * 2 / COARSE * scale, down * 2 / COARSE * scale]
    motion = torch.stack([scale, scale, torch.zeros_like(scale), *shifts], dim=2)
    return best, Placement(motion.flatten(0, 1), (kind >= len(SCALES)).flatten())


def refine(first: Tensor, second: Tensor, placement: Placement, *, steps: int = STEPS) -> tuple[Placement, Tensor]:
    """Placements after Gauss-Newton steps on the luminance.

    Args:
        first: `(m, 1, H, H)` luminance of a.
        second: `(m, 1, H, H)` luminance of b.
        placement: where b lies at first.
        steps: number of steps.

    Returns:
        The placements, and what share of a's variance was explained before the last step, `(m,)`.
    """
    a, side = first[:, 0], first.shape[-1]
    rows, columns = _axes(a, side)
    explained = a.new_zeros(len(a))
    for _ in range(steps):
        weight = placement.cover(side)
        total = weight.sum(dim=(1, 2), keepdim=True) + 1e-6
        b = placement.place(second)[:, 0]
        a_free = a - (weight * a).sum(dim=(1, 2), keepdim=True) / total
        b_free = b - (weight * b).sum(dim=(1, 2), keepdim=True) / total
        product = (weight * a_free * b_free).sum(dim=(1, 2), keepdim=True)
        gain = (product / ((weight * b_free.square()).sum(dim=(1, 2), keepdim=True) + 1e-4 * side)).clamp(0.3, 3)
        residual = a_free - gain * b_free
        variance = (weight * a_free.square()).sum(dim=(1, 2))
        explained = 1 - (weight * residual.square()).sum(dim=(1, 2)) / (variance + 1e-6)
        b = F.pad(b[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        slope = gain * weight.sqrt() * side / 4
        x, y = slope * (b[:, 1:-1, 2:] - b[:, 1:-1, :-2]), slope * (b[:, 2:, 1:-1] - b[:, :-2, 1:-1])
        basis = torch.stack([x * columns, y * rows, y * columns - x * rows, x, y], dim=1).flatten(2)
        normal = basis @ basis.mT
        damping = 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(dim=1) + 1e-5
        normal = normal + torch.eye(5) * damping[:, None, None]
        step = torch.linalg.solve(normal, basis @ (residual * weight.sqrt()).flatten(1)[:, :, None])[:, :, 0]
        placement = Placement(_moved(placement.motion, step.clamp(-0.15, 0.15)), placement.mirrored)
    return placement, explained


def _moved(motion: Tensor, step: Tensor) -> Tensor:
    """Motions after a step, within the bounds."""
    across, down = motion[:, 0] * (1 + step[:, 0]), motion[:, 1] * (1 + step[:, 1])
    scale = (across * down).clamp(min=1e-6).sqrt().clamp(1 / LARGEST_SCALE, LARGEST_SCALE)
    stretch = (across / down).clamp(1 / LARGEST_STRETCH, LARGEST_STRETCH).sqrt()
    turn = (motion[:, 2] + step[:, 2]).clamp(-LARGEST_TURN, LARGEST_TURN)
    shifts = motion[:, 3:] + motion[:, :2] * step[:, 3:]
    return torch.cat([torch.stack([scale * stretch, scale / stretch, turn], dim=1), shifts.clamp(-2, 2)], dim=1)


def _coarse(grey: Tensor) -> Tensor:
    return F.avg_pool2d(grey, grey.shape[-1] // COARSE)


def _spectrum(grey: Tensor) -> Tensor:
    """Of luminance at 16 pixels without what is broader than five, so that the correlation of equals is 1."""
    fields = (grey - F.avg_pool2d(F.pad(grey, (2, 2, 2, 2), mode="replicate"), 5, 1))[:, 0]
    fields = fields - fields.mean(dim=(1, 2), keepdim=True)
    return torch.fft.rfft2(fields / (fields.square().sum(dim=(1, 2), keepdim=True).sqrt() + 1e-3))


def _axes(like: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal places of pixels, from -1 to 1, `(side, 1)` and `(side,)`."""
    places = (torch.arange(side, dtype=like.dtype) * 2 + 1) / side - 1
    return places[:, None], places


def _inside(matrices: Tensor, side: int) -> Tensor:
    rows, columns = _axes(matrices, side)
    # Falls from 1 to 0 over a pixel at the border, so that the refinement meets no jump.
    x, y = ((1.02 - places.abs()).clamp(0, 0.06) for places in _places(matrices, rows, columns))
    return x * y / 0.06**2


def _places(matrices: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Where pixels come to lie, horizontally and vertically, `(m, side, side)` each."""
    x, y = matrices[:, :, :, None, None].unbind(dim=1)
    return x[:, 0] * columns + x[:, 1] * rows + x[:, 2], y[:, 0] * columns + y[:, 1] * rows + y[:, 2]
